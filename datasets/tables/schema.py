"""Schema of a table: name, type, range and resolution of each column."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pushforward.common.errors import DataError
from pushforward.datasets.tables.numbers.spellings import Spelling

# A column counts as tied if more than this fraction of its rows repeat an earlier value.
TIED = 0.01


@dataclass(frozen=True)
class Column:
    """One numeric column.

    Args:
        name: Its name in the file, or ``x1``, ``x2``, ... where the file has no names.
        type: Arrow's name of its number type, such as ``int64``, ``double`` or ``float``.
        minimum: Smallest recorded value.
        maximum: Largest recorded value.
        step: Resolution: distance between neighbouring points of the grid that the values lie on; None without a
            grid. At least 1 for integers.
        offset: A point of that grid; None without a grid.
        distinct: Number of different values.
        ties: Fraction of rows whose value repeats an earlier one. Whole rows that are repeated do not count, unless the
            table has one column only.
        spelling: How its numbers were written in the file, which decides what another file leaves open; None if plain.
    """

    name: str
    type: str
    minimum: float
    maximum: float
    step: float | None
    offset: float | None
    distinct: int
    ties: float
    spelling: Spelling | None = None

    @property
    def integer(self) -> bool:
        """Whether its type is an integer type."""
        return self.type.startswith(("int", "uint"))

    @property
    def tied(self) -> bool:
        """Whether values repeat so often that a density of the values as recorded would be unbounded."""
        return self.ties > TIED

    @property
    def decimals(self) -> int | None:
        """Digits after the decimal point that represent every point of the grid; None without a grid."""
        if self.step is None or self.offset is None:
            return None
        for digits in range(16):
            if all(_is_decimal(value, digits) for value in (self.step, self.offset)):
                return digits
        return None


def _is_decimal(value: float, digits: int) -> bool:
    return math.isclose(round(value, digits), value, rel_tol=1e-14, abs_tol=0.0)


@dataclass(frozen=True)
class Schema:
    """The columns of a data set: ``columns`` are modelled, ``context`` are conditioned on.

    Args:
        columns: The features, in the order of the matrix.
        context: The conditioning columns, in the order of the context matrix.
        order: Names of all columns in the order of the file; by default features, then context.
        file_columns: Number of columns of the file, including those not used; None without a file.
        places: Index in the file of each column of ``order``; empty if columns are found by name.
        missing_values: Numbers that stand for a missing cell.
    """

    columns: tuple[Column, ...]
    context: tuple[Column, ...] = ()
    order: tuple[str, ...] = field(default=())
    file_columns: int | None = None
    places: tuple[int, ...] = ()
    missing_values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = [column.name for column in (*self.columns, *self.context)]
        if not self.order:
            object.__setattr__(self, "order", tuple(names))
        if len(set(names)) != len(names) or sorted(self.order) != sorted(names):
            raise DataError(f"schema: order {self.order} does not list the columns {tuple(names)} once each")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(column.name for column in self.columns)

    @property
    def context_names(self) -> tuple[str, ...]:
        """Names of the conditioning columns."""
        return tuple(column.name for column in self.context)

    @property
    def spellings(self) -> dict[str, Spelling]:
        """How the numbers of columns were written, by name, unless they were plain."""
        both = (*self.columns, *self.context)
        return {column.name: column.spelling for column in both if column.spelling is not None}

    def with_spellings(self, spellings: Mapping[str, Spelling]) -> "Schema":
        """Return a schema that says how the numbers of columns were written."""
        # A guess that points are decimal tells nothing of commas in another file. Examples and doubts belong to a file.
        kept = {
            name: Spelling.from_dict(spelling.to_dict())
            for name, spelling in spellings.items()
            if not (spelling.doubt and spelling.is_plain("."))
        }
        columns, context = (
            tuple(dataclasses.replace(column, spelling=kept.get(column.name)) for column in columns)
            for columns in (self.columns, self.context)
        )
        return dataclasses.replace(self, columns=columns, context=context)

    def to_dict(self) -> dict[str, Any]:
        """Return lists, strings and numbers that JSON can hold."""
        content = {
            "columns": [_column_dict(column) for column in self.columns],
            "context": [_column_dict(column) for column in self.context],
            "order": list(self.order),
            "file_columns": self.file_columns,
        }
        optional = {"places": list(self.places), "missing_values": list(self.missing_values)}
        return content | {key: value for key, value in optional.items() if value}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Schema":
        """Rebuild a schema from the result of ``to_dict``.

        Raises:
            DataError: If a key is missing or unknown, or a value has the wrong type.
        """
        optional = ("places", "missing_values")
        places, missing_values = (content.get(key, []) if isinstance(content, dict) else [] for key in optional)
        known = {"columns", "context", "order", "file_columns"}
        _expect_keys("schema", content, known | {key for key in optional if key in content})
        order = content["order"]
        if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
            raise DataError("schema: 'order' is not a list of names; the file was changed by hand or is damaged")
        width = content["file_columns"]
        if width is not None and (not isinstance(width, int) or isinstance(width, bool)):
            raise DataError(f"schema: file_columns={width!r} is not a number; the file is damaged")
        whole = isinstance(places, list) and all(type(place) is int for place in places)
        if not whole or (places and len(places) != len(order)):
            raise DataError("schema: 'places' does not say where each column stands; the file is damaged")
        if not isinstance(missing_values, list) or not all(type(value) in (int, float) for value in missing_values):
            raise DataError("schema: 'missing_values' is not a list of numbers; the file is damaged")
        columns, context = _columns(content["columns"]), _columns(content["context"])
        return cls(columns, context, tuple(order), width, tuple(places), tuple(map(float, missing_values)))


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "type": (str,),
    "minimum": (int, float),
    "maximum": (int, float),
    "step": (int, float, type(None)),
    "offset": (int, float, type(None)),
    "distinct": (int,),
    "ties": (int, float),
}


def _column_dict(column: Column) -> dict[str, Any]:
    content = {key: getattr(column, key) for key in _FIELD_TYPES}
    return content if column.spelling is None else {**content, "spelling": column.spelling.to_dict()}


def _columns(items: Any) -> tuple[Column, ...]:
    if not isinstance(items, list):
        raise DataError(f"schema: expected a list of columns; got {type(items).__name__}")
    columns = []
    for item in items:
        written = item.get("spelling") if isinstance(item, dict) else None
        _expect_keys("schema: column", item, {*_FIELD_TYPES, *(["spelling"] if written is not None else [])})
        for key, allowed in _FIELD_TYPES.items():
            if not isinstance(item[key], allowed) or isinstance(item[key], bool):
                raise DataError(f"schema: column {item['name']!r} has {key}={item[key]!r}; the file is damaged")
        try:
            spelling = None if written is None else Spelling.from_dict(written)
        except ValueError as error:
            raise DataError(f"schema: column {item['name']!r} has a damaged spelling ({error})") from error
        columns.append(Column(**{**item, "spelling": spelling}))
    return tuple(columns)


def _expect_keys(where: str, item: Any, keys: set[str]) -> None:
    got = set(item) if isinstance(item, dict) else {type(item).__name__}
    if got != keys:
        raise DataError(f"{where}: expected the keys {sorted(keys)}; got {sorted(map(str, got))}")
