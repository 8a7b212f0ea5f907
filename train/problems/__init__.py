"""What can be fitted, one kind a file; each says how options become a model, a density, and its final numbers."""
