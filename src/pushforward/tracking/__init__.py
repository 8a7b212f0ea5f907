"""What a fit shows and records: the terminal, metrics.jsonl, Weights & Biases."""
