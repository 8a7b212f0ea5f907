"""Checks of a table: what a fit should know about its columns and rows."""
