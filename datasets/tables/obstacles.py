"""Find everything in a table that a density cannot use, and say so in one report with a command line that works."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pushforward.common.errors import TableError
from pushforward.common.text import number_text, shorten
from pushforward.datasets.tables.numbers.cells import RESCALE, Obstacle, complete_rows, constant_value, narrow_spread
from pushforward.datasets.tables.read import ENCODE, Columns, Numbers
from pushforward.datasets.tables.request import Request

MIN_ROWS = 3
"""Rows of the smallest table: one each for training, validation and test."""

GIVEN = "given"
"""What context rows are called that came as an object of their own."""

FINITE = "the density needs a finite number in each cell"
"""What to do about cells that cannot be scored."""

_MOST_LINES = 40
# More columns than this are not listed in a command if those to keep are shorter.
_MANY = 10
# A column with a larger share of missing cells costs more rows than it is worth.
_MOSTLY = 0.5


@dataclass(frozen=True)
class Remedy:
    """Options under which the usable part of a table can be fitted.

    Args:
        options: The options.
        rows: Number of rows that are left.
        drop: All columns that are left out.
    """

    options: Request
    rows: int
    drop: tuple[str, ...]


def find_obstacles(table: Columns, asked: Request) -> list[Obstacle]:
    """Return what is wrong with each column, in the order of the file; empty if the table can be used.

    Missing cells are not an obstacle if their rows are left out and enough rows remain; constant columns are none for a
    protocol, which leaves them out.
    """
    numbers, found = table.numbers, {obstacle.column: obstacle for obstacle in table.obstacles}
    complete = complete_rows(numbers.matrix)
    can_drop = asked.missing == "drop" and complete.sum() >= max(len(asked.features_of(numbers.names)), MIN_ROWS)
    if can_drop:
        found = {name: obstacle for name, obstacle in found.items() if not obstacle.in_rows}
    if asked.protocol is None and len(complete) >= MIN_ROWS:
        rows = complete if can_drop else slice(None)
        for name, values in zip(numbers.names, numbers.matrix.T, strict=True):
            if name in found and not found[name].in_rows:
                continue
            constant = constant_value(values[rows])
            if constant is not None:
                found[name] = about_constant(name, constant)
            elif narrow := narrow_spread(values[rows]):
                found[name] = Obstacle(name, narrow, RESCALE)
    return [found[name] for name in dict.fromkeys(table.names) if name in found]


def about_constant(name: str, value: float) -> Obstacle:
    """Return the obstacle of a column whose cells all hold one value."""
    return Obstacle(name, f"is constant ({number_text(value)}), so it has no density", "")


def find_remedy(table: Columns, obstacles: Sequence[Obstacle], asked: Request) -> Remedy | None:
    """Return options under which the usable part of a table can be fitted; None if there are none.

    Columns that cannot be used are left out, and so are columns that are mostly missing, or more of them while fewer
    than half of the rows are complete. A column that the user named is never left out, nor the last one to model.
    """
    numbers, named = table.numbers, asked.named
    hopeless = {obstacle.column for obstacle in obstacles if not obstacle.in_rows}
    holes = ~np.isfinite(numbers.matrix)
    keep = _with_few_holes(numbers, holes, [k for k, name in enumerate(numbers.names) if name not in hopeless], asked)
    if asked.protocol is None:
        # In the rows that remain, another column may be constant.
        rows = complete_rows(numbers.matrix[:, keep])
        keep = [k for k in keep if constant_value(numbers.matrix[rows, k]) is None]
    kept = [numbers.names[k] for k in keep]
    complete = int(complete_rows(numbers.matrix[:, keep]).sum())
    needed = max(len(asked.features_of(kept)), MIN_ROWS)
    if not set(named) <= {*kept, *asked.drop} or not asked.is_enough(kept) or complete < needed:
        return None
    options = replace(asked, missing="refuse" if complete == len(holes) else "drop")
    out = [name for name in dict.fromkeys(table.names) if name not in kept]
    drop = (*asked.drop, *out)
    # The context is added to these; all but a response is context.
    columns = kept if asked.response else asked.features_of(kept)
    if asked.columns is None and len(drop) > max(_MANY, len(columns)):
        return Remedy(replace(options, columns=columns, drop=()), complete, drop)
    return Remedy(replace(options, drop=drop), complete, drop)


def _with_few_holes(numbers: Numbers, holes: NDArray[np.bool_], keep: Sequence[int], asked: Request) -> list[int]:
    """Return the indices of those of some columns without which too few rows would be complete."""
    kept, incomplete = list(keep), holes[:, keep].sum(axis=1)
    for k in sorted(keep, key=lambda k: -int(holes[:, k].sum())):
        share, complete = holes[:, k].mean(), int((incomplete == 0).sum())
        if not share or (share <= _MOSTLY and complete >= max(len(holes) / 2, len(kept), MIN_ROWS)):
            break
        others = [numbers.names[j] for j in kept if j != k]
        if numbers.names[k] not in asked.named and asked.is_enough(others):
            kept.remove(k)
            incomplete -= holes[:, k]
    return kept


def report(where: str, obstacles: Sequence[Obstacle], columns: int) -> str:
    """Describe the obstacles of a table in one line, or in one line each below a first one.

    Args:
        where: Name of the table.
        obstacles: The obstacles.
        columns: Number of columns that were looked at.
    """
    if len(obstacles) == 1:
        return f"{where}: column {obstacles[0].column!r} {obstacles[0].what}"
    shown = obstacles if len(obstacles) <= _MOST_LINES else obstacles[: _MOST_LINES - 1]
    width = max(len(_name(obstacle)) for obstacle in shown)
    lines = [f"{where}: {len(obstacles)} of {columns} columns cannot be used as they are"]
    lines += [f"  {_name(obstacle):<{width}}  {obstacle.what}" for obstacle in shown]
    if len(shown) < len(obstacles):
        lines.append(f"  and {len(obstacles) - len(shown)} more")
    return "\n".join(lines)


def check_usable(
    where: str, obstacles: Sequence[Obstacle], columns: int, advice: str = FINITE, *, named: bool = True
) -> None:
    """Raise a ``TableError`` if there are obstacles: one line for one of them, the advice at its end.

    Args:
        where: Name of the table.
        obstacles: The obstacles.
        columns: Number of columns that were looked at.
        advice: What to do.
        named: Whether the only column is called by its name.
    """
    if obstacles:
        what = report(where, obstacles, columns) if named or columns > 1 else f"{where}: {obstacles[0].what}"
        raise TableError(what, advice, separator="\n" if "\n" in what else "; ")


def _name(obstacle: Obstacle) -> str:
    return repr(shorten(obstacle.column, 30))


def refuse(
    where: str, table: Columns, obstacles: Sequence[Obstacle], asked: Request, remedy: Remedy | None, failure: str = ""
) -> TableError:
    """Return the error that lists all obstacles of a table, and the command line that fits what can be used.

    Args:
        where: Name of the table.
        table: The table.
        obstacles: All its obstacles.
        asked: What was asked.
        remedy: Options that work; None if there are none.
        failure: Why there are none, if something else stands in the way.
    """
    names = set(table.names)
    if {obstacle.column for obstacle in obstacles} <= set(asked.given):
        where, names = GIVEN, set(asked.given)
    listed = report(where, obstacles, len(names))
    if remedy is None:
        advice = failure or _what_to_do(table, obstacles, asked)
        return TableError(listed, advice, separator=separator_of(asked, listed, advice))
    rows = len(table.numbers.matrix)
    count = "" if remedy.rows == rows else f", with {remedy.rows:,} of {rows:,} rows"
    texts = sum(obstacle.remedy == ENCODE for obstacle in obstacles)
    hint = f" (only numbers are modelled: to keep {'the' if texts == 1 else 'a'} column, {ENCODE})" if texts else ""
    advice = f"this works{count}{hint}:" + (" " if asked.in_python else "\n  ") + remedy.options.command()
    incomplete, separator = remedy.options.missing == "drop", separator_of(asked, listed, advice)
    return TableError(listed, advice, remedy.drop, incomplete=incomplete, separator=separator)


def separator_of(asked: Request, listed: str, advice: str) -> str:
    """Return what stands between the report and the advice, which are one line for objects with one obstacle."""
    return "; " if asked.in_python and "\n" not in listed + advice else "\n"


def _what_to_do(table: Columns, obstacles: Sequence[Obstacle], asked: Request) -> str:
    """Say what to do with a table that no options make usable."""
    named = [obstacle for obstacle in obstacles if obstacle.column in asked.named and not obstacle.in_rows]
    if named:
        return "\n".join(
            f"{asked.named[obstacle.column]} names {obstacle.column!r}: "
            f"{obstacle.remedy}{', or ' if obstacle.remedy else ''}take it out there"
            for obstacle in named
        )
    hopeless = {obstacle.column for obstacle in obstacles if not obstacle.in_rows}
    usable = [k for k, name in enumerate(table.numbers.names) if name not in hopeless]
    names = [table.numbers.names[k] for k in usable]
    if not asked.is_enough(names):
        remedies = dict.fromkeys(obstacle.remedy for obstacle in obstacles if obstacle.remedy)
        what = "condition on" if asked.features_of(names) else "model"
        return f"no column is left to {what}" + (f"; to keep one, {' or '.join(remedies)}" if remedies else "")
    rows = len(table.numbers.matrix)
    complete = int(complete_rows(table.numbers.matrix[:, usable]).sum())
    if complete < rows:
        return f"{complete:,} of {rows:,} rows are complete, too few for a fit: fill the missing cells"
    return f"{rows} rows are too few for a fit"


def rows_left_out(where: str, left_out: int, rows: int) -> tuple[str, ...]:
    """Return a note on rows that are left out because of missing values; empty if there are none."""
    if not left_out:
        return ()
    have, are = ("has", "is") if left_out == 1 else ("have", "are")
    return (f"{where}: {left_out:,} of {rows:,} rows {have} missing values and {are} left out (data.missing=drop)",)
