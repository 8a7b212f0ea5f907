"""Toy laws with exact densities, embedded data sets, and tables from files."""
