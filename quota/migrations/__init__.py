"""The schema's history. Each migration runs on SQLite and PostgreSQL; a released one is never edited."""
