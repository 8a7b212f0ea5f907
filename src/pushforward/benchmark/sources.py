"""The data of a benchmark before its first cell: whether they can be used, which files they are, and which are missing.

A file that cannot be used would fail in every cell, and one that has changed since some cells were run is other data:
their scores cannot be compared. Both are found here, by reading every source once.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pushforward.benchmark.jobs import Plan
from pushforward.benchmark.suites import FILES, Suite, names_in_text
from pushforward.common.errors import DataError
from pushforward.datasets import load, names

# Enough that every published part of the large sets has some; their checksum is of all rows whatever is read.
_FEW_ROWS = 20_000
_NAMES = r"(?:'(?P<quoted>data\.drop=[^']*)'|data\.drop=(?P<plain>[^\s;,]+(?:,[^\s;,]+)*))"


def read_sources(plan: Plan) -> dict[str, str]:
    """Read every data set of a plan once.

    Returns:
        SHA-256 of the file of each, by source; without those that have no file, such as toys.

    Raises:
        DataError: If a data set or a file that the user named cannot be used. One of a named suite, which does not
            stand and fall with it, fails in its cells.
    """
    suite, found = plan.suite, {}
    kinds = {entry.name: entry.kind for entry in names()}
    for source in dict.fromkeys(column.source for column in plan.columns):
        kind = kinds.get(source, "file")
        if kind == "toy" and suite.protocol == "none" and not suite.columns and not suite.drop:
            continue
        try:
            dataset = load(
                source,
                rows=_FEW_ROWS if kind in ("toy", "literature") else None,
                columns=suite.columns or None,
                drop=suite.drop,
                protocol=None if suite.protocol == "none" else suite.protocol,
                fold=plan.folds[0] if suite.protocol != "none" else 0,
            )
        except DataError as error:
            if suite.name == FILES:
                raise DataError(as_options(str(error), suite)) from None
            continue
        if dataset.sha256:
            found[source] = dataset.sha256
    return found


def missing_sets(sources: Sequence[str]) -> dict[str, str]:
    """Data sets that must be downloaded first, and how."""
    there = {entry.name: entry.where for entry in names()}
    missing = {}
    for source in sources:
        if there.get(source) == "not downloaded":
            missing[source] = f"not downloaded; get it with: pushforward datasets download {source}"
        elif source not in there and not Path(source).is_file():
            missing[source] = "there is no such data set in this version"
    return missing


def column_names(option: str, text: str | None) -> tuple[str, ...]:
    """Names of columns, as ``data.columns`` and ``data.drop`` take them.

    Raises:
        ConfigError: If the text is no list of names.
    """
    from pushforward.config.read import load_config

    if text is None:
        return ()
    found = getattr(load_config("iris", overrides=[f"data.{option}={text}"]).data, option)
    return () if found == "all" else tuple(found)


def as_options(text: str, suite: Suite) -> str:
    """What `pushforward fit` says of data that the user named, with the benchmark's options in place of its keys."""
    if suite.name != FILES:
        return text

    def drop(found: "re.Match[str]") -> str:
        more = (found["quoted"] or f"data.drop={found['plain']}").removeprefix("data.drop=")
        chosen = f"{names_in_text(suite.drop)},{more}" if suite.drop else more
        return f"--drop {shlex.quote(chosen)}"

    text = re.sub(_NAMES, drop, text)
    return re.sub(r"\bdata\.(columns|drop|protocol)\b", r"--\1", text).replace("another --seed", "other --folds")
