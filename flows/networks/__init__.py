"""Networks that turn features and context into the parameters of univariate maps."""
