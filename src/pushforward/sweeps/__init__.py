"""Searches for the best parameters with Optuna."""
