"""Data sets by name or by path."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pushforward.datasets.dataset import Dataset, divide
from pushforward.datasets.embedded import EMBEDDED, read_embedded
from pushforward.datasets.errors import DataError, nearest
from pushforward.datasets.table import Numbers, check_names, ending, read_table, select, to_numbers
from pushforward.datasets.target_names import PREFIX, TARGETS, targets
from pushforward.datasets.toys import CURVES, TOYS

TOY_ROWS = 250_000


class Entry(NamedTuple):
    """A line of the list of known data sets and targets.

    ``rows`` of a toy is the default, any number can be drawn; a target, a log-density, has none.
    """

    name: str
    kind: str
    rows: int | None
    columns: int
    description: str


def names() -> list[Entry]:
    """List the data sets and targets known by name, without loading any."""
    return [
        *(Entry(toy.name, "toy", TOY_ROWS, 2, toy.description) for toy in TOYS.values()),
        *(Entry(e.name, "scikit-learn", e.rows, e.columns, e.description) for e in EMBEDDED.values()),
        *(Entry(PREFIX + t.name, "target", None, t.features, t.description) for t in targets()),
    ]


def load(
    source: str | Path,
    *,
    rows: int | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    context: Sequence[str] = (),
) -> Dataset:
    """Load a data set.

    Args:
        source: A toy's name, the name of one of scikit-learn's sets, or a path to a file.
        rows: How many rows: a toy draws so many (250,000 unless told), a table gives a random part of so many.
        seed: Decides the draw, or the part.
        columns: Use only these; all unless told.
        drop: Leave these out.
        context: Columns to condition on instead of modelling them.

    Raises:
        DataError: There is no such data set, or it cannot be used; the message says what to do.

    Example:
        >>> load("moons", rows=500).rows.shape
        (500, 2)
    """
    if rows is not None and rows < 1:
        raise DataError(f"data.rows: expected at least 1; got {rows}")
    clash = [name for name in context if name in drop]
    if clash:
        raise DataError(f"data.context: column {clash[0]!r} is also in data.drop; take it out of one of them")
    if isinstance(source, str) and source.startswith(PREFIX):
        raise DataError(f"{source}: is a log-density and has no rows; `pushforward fit {source}` fits it")
    name = _canonical(source)
    if name in TOYS:
        return _toy(name, TOY_ROWS if rows is None else rows, seed, columns, drop, context)
    notes: tuple[str, ...]
    file_columns: int | None = None
    if name in EMBEDDED:
        numbers, notes = read_embedded(name)
        chosen = _chosen(name, numbers.names, columns, drop, context)
        keep = [numbers.names.index(column) for column in chosen]
        numbers = Numbers(tuple(chosen), tuple(numbers.types[k] for k in keep), numbers.matrix[:, keep])
        where, origin, sha256 = name, "scikit-learn", None
    else:
        path = Path(source)
        if not path.exists() and (ending(path) is None or path.suffix == "") and len(path.parts) == 1:
            raise DataError(_unknown(str(source)))
        where, notes = path.name, ()
        table = read_table(path)
        file_columns = table.num_columns
        numbers = to_numbers(table, where, _chosen(where, table.column_names, columns, drop, context))
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        origin, name = str(path), _stem(path)
    if rows is not None and rows < len(numbers.matrix):
        part = np.sort(np.random.default_rng(seed).choice(len(numbers.matrix), size=rows, replace=False))
        notes = (*notes, f"{where}: a random part, {rows} of {len(numbers.matrix)} rows")
        numbers = Numbers(numbers.names, numbers.types, numbers.matrix[part])
    elif rows is not None and rows > len(numbers.matrix):
        notes = (*notes, f"{where}: has {len(numbers.matrix)} rows, fewer than the {rows} asked for")
    features, given, schema, column_notes = divide(where, numbers, context)
    schema = dataclasses.replace(schema, file_columns=file_columns)
    return Dataset(name, origin, features, schema, (*notes, *column_notes), None, sha256, given)


def _toy(
    name: str, rows: int, seed: int, columns: Sequence[str] | None, drop: Sequence[str], context: Sequence[str]
) -> Dataset:
    points = TOYS[name].sample(rows, np.random.default_rng(seed))
    chosen = _chosen(name, ("x1", "x2"), columns, drop, context)
    points = points[:, [("x1", "x2").index(column) for column in chosen]]
    features, given, schema, notes = divide(name, Numbers(tuple(chosen), ("double",) * len(chosen), points), context)
    # With a column dropped or given, the rows follow another law than the toy's.
    toy = TOYS[name] if features.shape[1] == 2 else None
    return Dataset(name, "toy", features, schema, notes, toy, None, given)


def _canonical(source: str | Path) -> str:
    """Return the known name a source means, or the source itself."""
    if isinstance(source, Path):
        return ""
    name = source.strip().lower().replace("_", "-")
    if name in CURVES:
        raise DataError(
            f"{name}: {CURVES[name]} has no area, so its points have no density in the plane; "
            f"choose another toy, or add noise to the points and give them as a file"
        )
    return name if name in TOYS or name in EMBEDDED else source


def _unknown(source: str) -> str:
    known = [entry.name for entry in names() if entry.rows is not None]
    close = f"; did you mean {PREFIX + source!r}?" if source in TARGETS else nearest(source, known)
    return f"unknown dataset {source!r}{close} known: {', '.join(known)}; or the path of a file that exists"


def _chosen(
    where: str,
    names: Sequence[str],
    columns: Sequence[str] | None,
    drop: Sequence[str],
    context: Sequence[str],
) -> list[str]:
    check_names(where, "data.context", context, names)
    wanted = None if columns is None else [*columns, *(name for name in context if name not in columns)]
    return select(where, names, wanted, drop)


def _stem(path: Path) -> str:
    known = ending(path)
    return path.name if known is None else path.name[: -len(known)] or path.name
