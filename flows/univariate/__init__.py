"""Invertible maps of the real line, whose parameters a network gives."""
