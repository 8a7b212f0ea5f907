"""Networks with a variational posterior over their weights."""
