"""One file per kind of file: a function that yields its documents."""
