"""Density estimation with normalizing flows: fit, score, sample and evaluate.

Importing this package imports nothing else; the parts are ``pushforward.flows``, ``pushforward.datasets``,
``pushforward.train`` and ``pushforward.evaluate``.
"""

__version__ = "0.1.0"
