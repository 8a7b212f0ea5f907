"""The small UCI data sets bundled with scikit-learn: features without class labels."""

from dataclasses import dataclass

import numpy as np

from pushforward.datasets.tables.read import Numbers


@dataclass(frozen=True)
class BundledSet:
    """A data set bundled with scikit-learn.

    Args:
        name: Its name on the command line.
        loader: Name of the function in ``sklearn.datasets``.
        rows: Number of rows.
        columns: Number of columns that are not constant.
        description: One line.
    """

    name: str
    loader: str
    rows: int
    columns: int
    description: str


BUNDLED: dict[str, BundledSet] = {
    bundled.name: bundled
    for bundled in (
        BundledSet("wine", "load_wine", 178, 13, "UCI 109: chemical analysis of wines"),
        BundledSet("breast-cancer", "load_breast_cancer", 569, 30, "UCI 17: shapes of cell nuclei"),
        BundledSet("iris", "load_iris", 150, 4, "UCI 53: petals and sepals of irises"),
        BundledSet("digits", "load_digits", 1797, 61, "UCI 80: handwritten digits, 8 by 8 pixels of 0 to 16"),
    )
}


def read_bundled(name: str) -> tuple[Numbers, tuple[str, ...]]:
    """Return the columns of a data set, without constant ones, and notes for the user."""
    from sklearn import datasets

    bunch = getattr(datasets, BUNDLED[name].loader)()
    matrix = np.asarray(bunch.data, dtype=np.float64)
    names = [str(column) for column in bunch.feature_names]
    varies = (matrix != matrix[0]).any(axis=0)
    notes = [f"{name}: from scikit-learn; its class label is left out"]
    if not varies.all():
        constant = ", ".join(column for column, kept in zip(names, varies, strict=True) if not kept)
        notes.append(f"{name}: left out {constant}, which are constant")
    kept_names = tuple(column for column, kept in zip(names, varies, strict=True) if kept)
    return Numbers(kept_names, ("double",) * len(kept_names), matrix[:, varies]), tuple(notes)
