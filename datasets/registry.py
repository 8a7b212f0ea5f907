"""The toys, data sets and targets known by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pushforward.common.errors import DataError
from pushforward.common.registry import Registry
from pushforward.common.text import did_you_mean
from pushforward.datasets.sources.data_folder import data_folder
from pushforward.datasets.sources.literature import is_available
from pushforward.datasets.sources.literature_sets import LITERATURE
from pushforward.datasets.sources.scikit_learn import BUNDLED
from pushforward.datasets.sources.uci import UCI
from pushforward.datasets.sources.uci_files import find_uci
from pushforward.datasets.targets.names import PREFIX, TARGETS, targets
from pushforward.datasets.toys.toy import CURVES, TOYS

TOY_ROWS = 250_000

DATASETS: Registry[Callable[[], Any]] = Registry("data set", {})
"""Data sets that were added: functions that return rows in memory of any kind that ``load`` takes."""

Maker = TypeVar("Maker", bound=Callable[[], Any])


def register_dataset(name: str) -> Callable[[Maker], Maker]:
    """Return a decorator for a function that returns the rows of a data set, such as a pandas frame.

    Raises:
        ValueError: If the name is already used, or cannot be one.
    """
    if any(name in known for known in (CURVES, TOYS, BUNDLED, UCI, LITERATURE)):
        raise ValueError(f"register: the data set {name!r} exists already; take another name")
    return DATASETS.register(name)


class DatasetEntry(NamedTuple):
    """One line of the list of known data sets and targets.

    For a toy, ``rows`` is the default, and any number can be drawn; a target, being a log-density, has None. Rows and
    columns of a data set that was added are None: it is not read. ``where`` is ``bundled``, ``downloaded``,
    ``not downloaded`` or ``plugin``.
    """

    name: str
    kind: str
    rows: int | None
    columns: int | None
    where: str
    description: str


def names(folder: str | Path | None = None) -> list[DatasetEntry]:
    """List the data sets and targets known by name, without loading any.

    Args:
        folder: Data folder, with downloaded data sets; see ``data_folder``.
    """
    path = data_folder(folder)

    def where(available: bool) -> str:
        return "downloaded" if available else "not downloaded"

    return [
        *(DatasetEntry(toy.name, "toy", TOY_ROWS, 2, "bundled", toy.description) for toy in TOYS.values()),
        *(DatasetEntry(e.name, "scikit-learn", e.rows, e.columns, "bundled", e.description) for e in BUNDLED.values()),
        *(
            DatasetEntry(u.name, "UCI", u.rows, u.columns, where(bool(find_uci(u, path))), u.description)
            for u in UCI.values()
        ),
        *(
            DatasetEntry(s.name, "literature", s.rows, s.columns, where(is_available(s, path)), s.description)
            for s in LITERATURE.values()
        ),
        *(DatasetEntry(name, "added", None, None, "plugin", DATASETS.about(name)) for name in DATASETS.names()),
        *(DatasetEntry(PREFIX + t.name, "target", None, t.features, "bundled", t.description) for t in targets()),
    ]


def stored_name(source: str) -> str | None:
    """Return the name of the data set that a source refers to; None for a file or a toy."""
    name = known_name(source)
    return None if name in TOYS else name


def known_name(source: str | Path) -> str | None:
    """Return the name of the toy or the data set that a source refers to; None for a file."""
    if isinstance(source, Path):
        return None
    name = source.strip().lower().replace("_", "-")
    if name in CURVES:
        raise DataError(
            f"{name}: {CURVES[name]} has no area, so samples on it have no density in the plane; "
            f"choose another toy, or add noise to the samples and give them as a file"
        )
    return name if any(name in known for known in (TOYS, BUNDLED, UCI, LITERATURE, DATASETS.names())) else None


def unknown_dataset(source: str) -> str:
    """Return the error message for a name that is neither a file nor known."""
    known = [entry.name for entry in names() if entry.kind != "target"]
    close = f"did you mean {PREFIX + source!r}? " if source in TARGETS else did_you_mean(source, known)
    return f"unknown dataset {source!r}; {close}see `pushforward datasets`, or name a file that exists"
