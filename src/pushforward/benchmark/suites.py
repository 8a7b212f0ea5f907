"""Suites of `pushforward benchmark`: data sets with their protocol, units, methods and published numbers.

Five suites have names. Data sets and files that a user gives make a suite of their own.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pushforward.benchmark.published import PUBLISHED, Published
from pushforward.common.errors import ConfigError
from pushforward.common.plugins import load_plugins
from pushforward.common.text import did_you_mean, unknown_name
from pushforward.datasets.tables.files.kind import table_stem
from pushforward.datasets.tables.files.local_file import file_status

Units = Literal["data", "standardized"]
Score = Literal["log-likelihood", "nll"]
Dequantize = Literal["off", "auto"]

_BASELINES = ("gaussian", "gaussian-mixture", "kde")


@dataclass(frozen=True)
class Suite:
    """Data sets that are measured together, in the same way.

    Attributes:
        name: Its name on the command line.
        description: A line about it.
        sets: Names or paths of the data sets, as ``pushforward fit`` takes them.
        protocol: ``data.protocol`` of every fit; ``none`` divides the rows by ``data.seed``, which is then the fold.
        folds: Default divisions.
        most_folds: Number of possible divisions; None for any number, 1 if the parts are fixed.
        score: ``log-likelihood`` (higher is better) or ``nll`` (lower is better), the mean over the test rows in nats.
        units: ``standardized`` by the training part, or those of the ``data``.
        dequantize: Default ``data.dequantize``.
        methods: Default methods.
        columns: ``data.columns`` of every fit; empty for all.
        drop: ``data.drop`` of every fit.
    """

    name: str
    description: str
    sets: tuple[str, ...]
    protocol: str = "none"
    folds: tuple[int, ...] = (0,)
    most_folds: int | None = None
    score: Score = "log-likelihood"
    units: Units = "standardized"
    dequantize: Dequantize = "off"
    methods: tuple[str, ...] = (*_BASELINES, "nflows:nsf-ar", "auto")
    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    @property
    def published(self) -> tuple[Published, ...]:
        """Published rows for its data sets."""
        return PUBLISHED.get(self.name, ())

    @property
    def sign(self) -> float:
        """The score divided by the mean log-likelihood: 1 or -1."""
        return 1.0 if self.score == "log-likelihood" else -1.0

    @property
    def fold_word(self) -> str:
        """Name of a division: fold, half or split."""
        return {"rnade": "fold", "half": "half", "tenths": "split"}.get(self.protocol, "split")

    @property
    def folds_word(self) -> str:
        """The same in the plural."""
        return "halves" if self.fold_word == "half" else f"{self.fold_word}s"

    @property
    def has_random_parts(self) -> bool:
        """Whether its divisions are random and overlap."""
        return self.most_folds is None

    def units_in_words(self) -> str:
        """Return the units of its scores in words."""
        if self.units == "standardized":
            return "nats, columns standardised on the training part"
        return "nats, in the units the literature standardises to" if self.name == "literature" else "nats, data units"


def score_in_words(suite: Suite) -> str:
    """Return what the scores of a suite are, in a line."""
    score, better = ("test log-likelihood", "higher") if suite.score == "log-likelihood" else ("test NLL", "lower")
    return f"mean {score} in {suite.units_in_words()}; {better} is better"


SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "literature",
            "the five large sets of the flow literature, on their fixed parts",
            ("power", "gas", "hepmass", "miniboone", "bsds300"),
            most_folds=1,
            units="data",
        ),
        Suite(
            "rnade",
            "five UCI sets in ten folds (Uria, Murray and Larochelle 2013)",
            ("red-wine", "white-wine", "parkinsons-telemonitoring", "ionosphere", "housing"),
            protocol="rnade",
            folds=tuple(range(10)),
            most_folds=10,
        ),
        Suite(
            "half",
            "five small sets, half of the rows for training (quasi-Bayesian predictives, 2023 and 2024)",
            ("wine", "breast-cancer-prognostic", "parkinsons", "ionosphere", "housing"),
            protocol="half",
            folds=tuple(range(5)),
            score="nll",
        ),
        Suite(
            "tables",
            "five UCI tables, the last tenth of the shuffled rows for testing",
            ("protein", "magic", "white-wine", "power-plant", "parkinsons-telemonitoring"),
            protocol="tenths",
        ),
        Suite(
            "embedded",
            "scikit-learn's small sets: is a flow better than simple densities on few rows?",
            ("iris", "wine", "breast-cancer", "digits"),
            folds=tuple(range(5)),
            dequantize="auto",
            methods=(*_BASELINES, "auto"),
        ),
    )
}
"""Suites by name."""

FILES = "files"
"""Name of the suite that data sets and files of the user make."""


def suite_of(
    arguments: Sequence[str],
    protocol: str | None = None,
    *,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Suite:
    """Return a named suite, or the suite of the given data sets and files.

    Args:
        arguments: The name of a suite, or one or more data sets and files, as ``pushforward fit`` takes them.
        protocol: ``data.protocol``, for data sets and files.
        columns: Columns to learn, for data sets and files; empty for all.
        drop: Columns to leave out, for data sets and files.

    Raises:
        ConfigError: If a name is unknown, or a suite is combined with other arguments.
    """
    if not arguments:
        raise ConfigError(f"expected a suite ({', '.join(SUITES)}), or data sets and files; see --list")
    names = [argument.strip().lower() for argument in arguments]
    named = [name for name in names if name in SUITES]
    if named and len(arguments) > 1:
        raise ConfigError(f"{named[0]}: expected one suite, or data sets and files; got a suite and more")
    if named:
        if protocol is not None and protocol != SUITES[named[0]].protocol:
            raise ConfigError(f"--protocol: the suite {named[0]} has its own; it is for data sets and files")
        for option, chosen in (("--columns", columns), ("--drop", drop)):
            if chosen:
                raise ConfigError(f"{option}: the suite {named[0]} has its columns; it is for data sets and files")
        return SUITES[named[0]]
    for argument in arguments:
        check_source(argument)
    sources = tuple(dict.fromkeys(_absolute(argument) for argument in arguments))
    suite = Suite(FILES, "data sets and files", sources, folds=tuple(range(5)), dequantize="auto",
                  columns=tuple(columns), drop=tuple(drop))  # fmt: skip
    if protocol in (None, "none"):
        return suite
    from pushforward.datasets.tables.protocols import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise ConfigError(f"--protocol: {unknown_name('protocol', protocol, PROTOCOLS)}")
    most = PROTOCOLS[protocol].folds
    return replace(suite, protocol=protocol, most_folds=most, dequantize="off")


def check_source(source: str) -> None:
    """Check that a source is a known data set or a file.

    Raises:
        ConfigError: If it is not; the nearest known name is part of the message.
    """
    if source.startswith("target:"):
        raise ConfigError(f"{source}: is a density and has no rows to be scored; give a data set or a file")
    known = known_sets()
    if _canonical(source) in known or file_status(source) is not None:
        return
    if Path(source).is_dir():
        raise ConfigError(f"{source}: is a folder; give the files in it")
    if Path(source).suffix or "/" in source:
        raise ConfigError(f"{source}: no such file")
    raise ConfigError(
        f"unknown suite or data set '{source}'; {did_you_mean(source, [*SUITES, *known])}suites: {', '.join(SUITES)}; "
        "data sets: see pushforward datasets; or the path of a file that exists"
    )


def known_sets() -> list[str]:
    """Return the names of all data sets, those of plugins too."""
    from pushforward.datasets.registry import names

    load_plugins(warnings.warn)
    return [entry.name for entry in names() if entry.kind != "target"]


def chosen_sets(suite: Suite, names: Sequence[str]) -> tuple[str, ...]:
    """Return the named data sets of a suite, in the order given.

    Raises:
        ConfigError: If one does not belong to the suite.
    """
    known = {label: source for source, label in labels(suite.sets).items()}
    wanted = []
    for name in names:
        if name not in suite.sets and _canonical(name) not in known:
            raise ConfigError(
                f"--sets: '{name}' is not of the suite {suite.name}; "
                f"{did_you_mean(name, known)}it has {', '.join(known)}"
            )
        wanted.append(name if name in suite.sets else known[_canonical(name)])
    return tuple(dict.fromkeys(wanted))


def chosen_folds(suite: Suite, text: str) -> tuple[int, ...]:
    """Read ``0-9`` or ``0,2,5-7`` as divisions of a suite.

    Raises:
        ConfigError: If it is neither, or the suite has no such division.
    """
    folds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None:
            raise ConfigError(f"--folds: expected numbers and ranges, as in 0-9 or 0,2,5; got {text!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first > 10_000:
            raise ConfigError(f"--folds: expected numbers and ranges, as in 0-9 or 0,2,5; got {text!r}")
        folds += range(first, last + 1)
    most = suite.most_folds
    if most is not None and max(folds) >= most:
        has = "has fixed parts, which are fold 0" if most == 1 else f"has folds 0 to {most - 1}"
        raise ConfigError(f"--folds: {suite.name} {has}; got {max(folds)}")
    return tuple(dict.fromkeys(folds))


def labels(sources: Sequence[str]) -> dict[str, str]:
    """Return the names of data sets in a table: files without suffix, with as many folders as make them unique."""
    depth = dict.fromkeys(sources, 1)
    while True:
        found = {source: _label(source, depth[source]) for source in sources}
        ambiguous = [
            source
            for source, label in found.items()
            if list(found.values()).count(label) > 1 and depth[source] < len(Path(source).parts)
        ]
        if not ambiguous:
            return found
        for source in ambiguous:
            depth[source] += 1


def set_name(source: str) -> str:
    """Return the replacement of ``{set}`` in the name of a file; it does not depend on the other data sets."""
    return _label(source, 1)


def _label(source: str, depth: int) -> str:
    path = Path(source)
    if len(path.parts) < 2:
        return source
    return "/".join([*path.parts[-depth:-1], table_stem(path.name)])


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _absolute(source: str) -> str:
    """The absolute path of a file; the known name of a data set."""
    if _canonical(source) in known_sets():
        return _canonical(source)
    return str(Path(source).resolve())
