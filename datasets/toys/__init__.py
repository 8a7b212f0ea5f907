"""Two-dimensional toys whose density is known exactly."""
