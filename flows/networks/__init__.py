"""Networks that compute the parameters of univariate maps from features and context."""
