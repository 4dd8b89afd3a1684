"""One file per selection method; the file's name is the method's name."""
