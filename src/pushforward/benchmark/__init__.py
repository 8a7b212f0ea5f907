"""Data sets and methods in one table, beside published numbers."""
