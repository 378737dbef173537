"""The journal: durable events, cursors, coverage and state, in one SQLite file."""
