"""Bijections, base densities and flows."""
