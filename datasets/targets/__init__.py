"""Unnormalised target densities that a flow can be fitted to."""
