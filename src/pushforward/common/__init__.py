"""Shared helpers: files, locks, text, numbers as text, errors, registries. Standard library only."""
