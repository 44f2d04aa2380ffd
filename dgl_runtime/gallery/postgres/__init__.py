"""A gallery in a schema of a PostgreSQL database with pgvector; any number of writers at once."""
