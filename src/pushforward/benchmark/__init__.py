"""Benchmarks: data sets x methods in one table, beside published numbers."""
