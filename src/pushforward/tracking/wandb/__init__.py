"""Weights & Biases: a client in a process of its own, uploading, dashboards."""
