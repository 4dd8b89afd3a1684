"""One file per merging method; the file's name is the method's name."""
