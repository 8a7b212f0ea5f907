"""Objectives of training, one a file, and the gradient estimators of those that sample from the flow."""
