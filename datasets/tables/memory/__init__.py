"""Rows in memory: arrays, tensors, frames, Arrow tables, dicts and lists, and the way back to them."""
