"""Variational autoencoders whose prior and posterior are flows."""
