"""Where data sets come from: scikit-learn, the UCI repository, the five sets of the literature."""
