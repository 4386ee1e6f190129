"""The study: what a configuration says, and everything that is checked before a job starts."""
