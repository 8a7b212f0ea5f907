"""Invertible layers, forward from data to base."""
