"""Invertible maps of the real line with parameters from a network."""
