"""Sources of data sets: scikit-learn, the UCI repository, the five sets of the literature."""
