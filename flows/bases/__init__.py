"""Base distributions: the simple end of a flow."""
