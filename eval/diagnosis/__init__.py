"""A diagnosis of interference: numbers, tables, pictures."""
