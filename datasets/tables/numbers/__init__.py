"""Numbers in cells: how they are written, and what stands where none is."""
