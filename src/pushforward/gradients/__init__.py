"""The study of gradient estimators."""
