"""Routers: which expert an input goes to, or to none; one file per kind, found by its name."""
