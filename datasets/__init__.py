"""Data to learn densities of: toys with exact laws, scikit-learn's UCI sets, and tables from files.

``load`` takes any of them by name or path and returns a ``Dataset``: a float64 matrix, a ``Schema`` of its columns,
and notes for the user. What cannot be used raises ``DataError`` with one line that says what to do.
"""

from pushforward.datasets.dataset import Dataset
from pushforward.datasets.dequantize import Dequantizer
from pushforward.datasets.errors import DataError
from pushforward.datasets.grid import Grid, find_step
from pushforward.datasets.registry import Entry, load, names
from pushforward.datasets.schema import Column, Schema
from pushforward.datasets.splits import Splits, split
from pushforward.datasets.stream import RowStream, read_rows
from pushforward.datasets.table import read_table
from pushforward.datasets.toys import TOYS, Toy
from pushforward.datasets.whole_file import whole_file
from pushforward.datasets.write import write_table

__all__ = [
    "TOYS",
    "Column",
    "DataError",
    "Dataset",
    "Dequantizer",
    "Entry",
    "Grid",
    "RowStream",
    "Schema",
    "Splits",
    "Toy",
    "find_step",
    "load",
    "names",
    "read_rows",
    "read_table",
    "split",
    "whole_file",
    "write_table",
]
