"""Check the data of a benchmark before its first job: whether they can be read, and the checksums of their files.

A file that cannot be read would fail in every job. A file that has changed since some jobs ran has other rows, whose
scores cannot be compared. Both are found here, by reading every source once.
"""

import re
import shlex
from collections.abc import Sequence

from pushforward.benchmark.jobs import BenchmarkPlan
from pushforward.benchmark.suites import FILES, Suite, known_sets
from pushforward.common.errors import DataError, TableError
from pushforward.common.text import as_argument
from pushforward.datasets import load, names
from pushforward.datasets.tables.files.local_file import file_status

# Enough rows for every published part of the large sets; their checksum is of the whole file in any case.
_FEW_ROWS = 20_000
# The advice of `pushforward fit` to leave out columns.
_DROP = r"(?:'(?P<quoted>data\.drop=[^']*)'|data\.drop=(?P<plain>[^\s;,]+(?:,[^\s;,]+)*))"


def read_sources(plan: BenchmarkPlan) -> dict[str, str]:
    """Read every data set of a plan once.

    Returns:
        SHA-256 of the file of each source; sources without a file, such as toys, are left out.

    Raises:
        DataError: If a data set or a file that the user named cannot be read. A data set of a named suite fails later,
            in its own jobs, because the suite is useful without it.
    """
    suite, checksums = plan.suite, {}
    kinds = {entry.name: entry.kind for entry in names()}
    for source in dict.fromkeys(task.source for task in plan.tasks):
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
        except TableError as error:
            if suite.name == FILES:
                raise TableError(error.report, _advice(error)) from None
            continue
        except DataError as error:
            if suite.name == FILES:
                raise DataError(in_benchmark_options(str(error), suite)) from None
            continue
        if dataset.sha256:
            checksums[source] = dataset.sha256
    return checksums


def _advice(error: TableError) -> str:
    """Say what to do with a table in the options of the benchmark."""
    rows = "a benchmark needs complete rows: remove those with missing values" if error.incomplete else ""
    drop = f"leave columns out with --drop {shlex.quote(as_argument(error.drop))}" if error.drop else ""
    return "; ".join(text for text in (rows, drop) if text) or "a benchmark cannot use this table as it is"


def missing_sets(sources: Sequence[str]) -> dict[str, str]:
    """Return the data sets that are not available, and what to do."""
    where, known = {entry.name: entry.where for entry in names()}, known_sets()
    missing = {}
    for source in sources:
        if where.get(source) == "not downloaded":
            missing[source] = f"not downloaded; get it with: pushforward datasets download {source}"
        elif source not in known and file_status(source) is None:
            missing[source] = "there is no such data set in this version"
    return missing


def column_names(option: str, text: str | None) -> tuple[str, ...]:
    """Read a list of names of columns.

    Args:
        option: ``columns`` or ``drop``: the text is read as ``data.columns`` or ``data.drop`` would be.
        text: The list; None for no names.

    Raises:
        ConfigError: If the text is no list of names.
    """
    from pushforward.config.read import load_config

    if text is None:
        return ()
    columns = getattr(load_config("iris", overrides=[f"data.{option}={text}"]).data, option)
    return () if columns == "all" else tuple(columns)


def in_benchmark_options(text: str, suite: Suite) -> str:
    """Replace keys of `pushforward fit` in a message about data that the user named by options of the benchmark."""
    if suite.name != FILES:
        return text

    def drop(found: "re.Match[str]") -> str:
        more = (found["quoted"] or f"data.drop={found['plain']}").removeprefix("data.drop=")
        columns = f"{as_argument(suite.drop)},{more}" if suite.drop else more
        return f"--drop {shlex.quote(columns)}"

    text = re.sub(_DROP, drop, text)
    return (
        re.sub(r"\bdata\.(columns|drop|protocol)\b", r"--\1", text)
        .replace("another seed of the split", "other --folds")
        .replace("another data.fold", "other --folds")
    )
