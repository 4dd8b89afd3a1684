"""Rows of the translation table, by family of methods."""
