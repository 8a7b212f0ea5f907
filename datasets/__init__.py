"""Data sets and unnormalised target densities.

``load`` takes the name of a toy or a data set, the path of a file, or rows in memory, and returns a ``Dataset``: a
float64 matrix, a ``Schema`` of its columns, and notes for the user. ``load_target`` returns an unnormalised
log-density, a ``Target``, by name or from a Python module. Data that cannot be used raise ``DataError`` with one line
that says what to do.
"""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.datasets.dataset import Dataset as Dataset
    from pushforward.datasets.loading import load as load
    from pushforward.datasets.named_rows import open_rows as open_rows
    from pushforward.datasets.registry import (
        DatasetEntry as DatasetEntry,
        names as names,
        register_dataset as register_dataset,
    )
    from pushforward.datasets.tables.dequantize import Dequantizer as Dequantizer
    from pushforward.datasets.tables.grid import Grid as Grid, find_resolution as find_resolution
    from pushforward.datasets.tables.memory.frame_kind import FrameKind as FrameKind
    from pushforward.datasets.tables.read import read_table as read_table
    from pushforward.datasets.tables.schema import Column as Column, Schema as Schema
    from pushforward.datasets.tables.splits import Splits as Splits, split as split
    from pushforward.datasets.tables.stream import RowStream as RowStream, read_rows as read_rows
    from pushforward.datasets.tables.write import rows_table as rows_table, write_table as write_table
    from pushforward.datasets.targets.base import (
        FunctionTarget as FunctionTarget,
        Target as Target,
        TargetError as TargetError,
    )
    from pushforward.datasets.targets.check import check_target as check_target
    from pushforward.datasets.targets.load import load_target as load_target
    from pushforward.datasets.targets.names import TARGETS as TARGETS, TargetEntry as TargetEntry
    from pushforward.datasets.toys.toy import TOYS as TOYS, Toy as Toy

__getattr__, __dir__ = lazy(
    "pushforward.datasets",
    {
        "dataset": "Dataset",
        "loading": "load",
        "named_rows": "open_rows",
        "registry": "DatasetEntry names register_dataset",
        "tables.dequantize": "Dequantizer",
        "tables.memory.frame_kind": "FrameKind",
        "tables.grid": "Grid find_resolution",
        "tables.read": "read_table",
        "tables.schema": "Column Schema",
        "tables.splits": "Splits split",
        "tables.stream": "RowStream read_rows",
        "tables.write": "rows_table write_table",
        "targets.base": "FunctionTarget Target TargetError",
        "targets.check": "check_target",
        "targets.load": "load_target",
        "targets.names": "TARGETS TargetEntry",
        "toys.toy": "TOYS Toy",
    },
)
