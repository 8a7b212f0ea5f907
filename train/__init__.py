"""Fitting flows: configuration, the loop, runs on disk, tracking."""
