"""Stores: documents with their fields and edges, full text, vectors; embedded in a folder, or in PostgreSQL."""
