"""Hyperparameter sweeps: search for the parameters with the best validation NLL, with Optuna."""
