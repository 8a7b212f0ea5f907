"""Invertible layers; forward maps data to base."""
