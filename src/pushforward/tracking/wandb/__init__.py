"""Weights & Biases: the client in its own process, reading and uploading its records, dashboards."""
