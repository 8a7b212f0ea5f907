"""The version of the package, and the folder that it is imported from."""

from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder ``pushforward``; its parent is what Python's path has to name."""
