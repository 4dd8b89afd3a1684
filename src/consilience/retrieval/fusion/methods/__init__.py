"""One file per fusion method; the file's name is the method's name."""
