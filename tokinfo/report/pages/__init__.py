"""Pages of the report that are more than a figure."""
