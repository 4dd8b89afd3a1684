"""The stores of an index in a PostgreSQL server with pgvector."""
