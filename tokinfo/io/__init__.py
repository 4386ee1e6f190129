"""Files: whole or not at all, locked, and where results come from."""
