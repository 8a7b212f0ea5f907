"""Show and record a fit: progress on the terminal, metrics.jsonl, Weights & Biases."""
