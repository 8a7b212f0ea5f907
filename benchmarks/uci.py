"""The tables of the quality benchmark, cleaned and split the same for every rival.

Columns with at most 5 % distinct values go, then one of each pair with a correlation beyond 0.98; rows are shuffled
with ``RandomState(42)``; the last tenth is the test, the tenth before it validation; columns are standardised on the
training part. White wine is the exception: nearly all of its columns are rounded so coarsely that 5 % would leave three
of them, so that only its grade is dropped, which leaves the eleven columns of the literature.
"""

import csv
import gzip
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[np.float64]]
DEFAULT_FOLDER = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Table:
    """A data set in standardised units, float32."""

    name: str
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    log_scale: float
    """Sum of the logarithms of the columns' standard deviations: what to take off for nats in data units."""

    @property
    def features(self) -> int:
        return self.train.shape[1]


def load(name: str, folder: Path) -> Table:
    """Read a data set and split it."""
    read, by_rule = _READERS[name]
    rows = read(folder)
    if by_rule:
        rows = _drop_columns(rows)
    rows = rows[np.random.RandomState(42).permutation(len(rows))]
    tenth = len(rows) // 10
    train, validation, test = rows[: -2 * tenth], rows[-2 * tenth : -tenth], rows[-tenth:]
    mean, scale = train.mean(0), train.std(0)
    parts = [torch.from_numpy((part - mean) / scale).float() for part in (train, validation, test)]
    return Table(name, *parts, log_scale=float(np.log(scale).sum()))


def _drop_columns(rows: Array) -> Array:
    many = [j for j in range(rows.shape[1]) if len(np.unique(rows[:, j])) > 0.05 * len(rows)]
    rows = rows[:, many]
    correlations = np.abs(np.corrcoef(rows, rowvar=False))
    kept: list[int] = []
    for j in range(rows.shape[1]):
        if all(correlations[j, k] <= 0.98 for k in kept):
            kept.append(j)
    return rows[:, kept]


def _protein(folder: Path) -> Array:
    with gzip.open(folder / "raw" / "CASP.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",", skiprows=1)


def _magic(folder: Path) -> Array:
    with open(folder / "raw" / "magic04.data") as file:
        return np.array([[float(cell) for cell in row[:10]] for row in csv.reader(file) if row])


def _white_wine(folder: Path) -> Array:
    return np.loadtxt(folder / "raw" / "winequality-white.csv", delimiter=";", skiprows=1)[:, :11]


def _power_plant(folder: Path) -> Array:
    # The five sheets hold the same rows; a sheet is XML in a zip file, and this one has numbers only.
    with zipfile.ZipFile(folder / "raw" / "Folds5x2_pp.xlsx") as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    rows = re.findall(r"<row [^>]*>(.*?)</row>", sheet)[1:]
    return np.array([[float(value) for value in re.findall(r"<v>(.*?)</v>", row)] for row in rows])


def _parkinsons(folder: Path) -> Array:
    with gzip.open(folder / "uci" / "parkinsons.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


_READERS: dict[str, tuple[Callable[[Path], Array], bool]] = {
    "protein": (_protein, True),
    "magic": (_magic, True),
    "white-wine": (_white_wine, False),
    "power-plant": (_power_plant, True),
    "parkinsons": (_parkinsons, True),
}
NAMES = tuple(_READERS)
