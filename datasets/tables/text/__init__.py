"""Delimited text: its format, its first lines, and how it is parsed."""
