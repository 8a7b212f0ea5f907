"""What to learn densities of: toys with exact laws, scikit-learn's UCI sets, tables from files, and log-densities.

``load`` takes any of them by name or path and returns a ``Dataset``: a float64 matrix, a ``Schema`` of its columns,
and notes for the user. What cannot be used raises ``DataError`` with one line that says what to do.
``load_target`` takes an unnormalised log-density, a ``Target``, by name or from a Python module; what has to do with
targets is imported when it is first asked for, since it takes torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pushforward.datasets.dataset import Dataset
from pushforward.datasets.dequantize import Dequantizer
from pushforward.datasets.errors import DataError
from pushforward.datasets.grid import Grid, find_step
from pushforward.datasets.named_rows import open_rows
from pushforward.datasets.registry import Entry, load, names
from pushforward.datasets.schema import Column, Schema
from pushforward.datasets.splits import Splits, split
from pushforward.datasets.stream import RowStream, read_rows
from pushforward.datasets.table import read_table
from pushforward.datasets.target_names import TARGETS, TargetEntry
from pushforward.datasets.toys import TOYS, Toy
from pushforward.datasets.whole_file import whole_file
from pushforward.datasets.write import write_table

if TYPE_CHECKING:
    from pushforward.datasets.target import FunctionTarget, Target, TargetError
    from pushforward.datasets.target_check import check_target
    from pushforward.datasets.targets import load_target

_HOMES = {
    "FunctionTarget": "target",
    "Target": "target",
    "TargetError": "target",
    "check_target": "target_check",
    "load_target": "targets",
}

__all__ = [
    "TARGETS",
    "TOYS",
    "Column",
    "DataError",
    "Dataset",
    "Dequantizer",
    "Entry",
    "FunctionTarget",
    "Grid",
    "RowStream",
    "Schema",
    "Splits",
    "Target",
    "TargetEntry",
    "TargetError",
    "Toy",
    "check_target",
    "find_step",
    "load",
    "load_target",
    "names",
    "open_rows",
    "read_rows",
    "read_table",
    "split",
    "whole_file",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pushforward.datasets.{_HOMES[name]}"), name)
