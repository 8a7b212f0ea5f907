"""A cell of a benchmark, one method on one division of one data set, and what came of it."""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pushforward.benchmark.methods import Method, parse_method
from pushforward.benchmark.suites import Dequantize, Suite, names_in_text, set_name
from pushforward.common.errors import RunError

Array = npt.NDArray[np.float64]
Status = Literal["finished", "failed"]


class Column(NamedTuple):
    """A data set as a suite measures it: with its values as they are, or spread over their grid steps."""

    source: str
    dequantize: Dequantize


class Cell(NamedTuple):
    """What is measured at once.

    Attributes:
        source: Name or path of the data set.
        dequantize: ``data.dequantize``.
        fold: Which division of the rows.
        seed: Seed of the fit.
        method: The method, as :attr:`Method.spec` names it.
    """

    source: str
    dequantize: Dequantize
    fold: int
    seed: int
    method: str

    @property
    def column(self) -> Column:
        """Where it stands in the table."""
        return Column(self.source, self.dequantize)

    @property
    def split(self) -> tuple[str, str, int, int]:
        """What baselines are fitted to all at once."""
        return self.source, self.dequantize, self.fold, self.seed

    @property
    def folder(self) -> str:
        """Name of its folder, which no other cell has."""
        path = Path(self.source)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-.") or "data"
        if len(path.parts) > 1:  # another file may have the same name
            name += "-" + hashlib.sha256(self.source.encode()).hexdigest()[:6]
        spread = "" if self.dequantize == "off" else "-spread"
        return f"{name}{spread}-f{self.fold}-s{self.seed}-{parse_method(self.method).slug}"

    def data_overrides(self, suite: Suite) -> list[str]:
        """The keys that decide its rows."""
        found = [f"data.dequantize={self.dequantize}"]
        chosen = (("columns", suite.columns), ("drop", suite.drop))
        found += [f"data.{key}={names_in_text(names)}" for key, names in chosen if names]
        if suite.protocol != "none":
            return [*found, f"data.protocol={suite.protocol}", f"data.fold={self.fold}"]
        # Parts that are fixed take no seed; without a protocol every seed of the data is a division of its own.
        return found if suite.most_folds == 1 else [*found, f"data.seed={self.fold}"]


@dataclass(frozen=True)
class Budget:
    """How long every trained method may take, and on what.

    Attributes:
        seconds: Time in the loop of a fit; None where steps are counted.
        steps: Steps of a fit; None where seconds are counted.
        threads: Threads of a fit.
        device: Where it runs.
    """

    seconds: float | None = 60.0
    steps: int | None = None
    threads: int = 1
    device: str = "auto"

    def overrides(self, method: Method) -> list[str]:
        """The keys that say so to a fit, unless the method says it itself."""
        if method.has_own_budget:
            return []
        return [f"train.seconds={self.seconds:g}" if self.seconds is not None else f"train.steps={self.steps}"]

    def __str__(self) -> str:
        """As in ``60 s on 1 thread``."""
        what = f"{self.seconds:g} s" if self.seconds is not None else f"{self.steps:,} steps"
        return f"{what} on {self.threads} thread{'s' if self.threads != 1 else ''}"


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        suite: The suite.
        columns: Its data sets, as they are measured.
        folds: Divisions of each.
        seeds: Seeds of each division.
        methods: What is compared.
        budget: How long each may take.
    """

    suite: Suite
    columns: tuple[Column, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    budget: Budget

    @property
    def cells(self) -> list[Cell]:
        """All cells, fold by fold, so that wherever it ends every method has had the same ones but in the last."""
        return [
            Cell(column.source, column.dequantize, fold, seed, method.spec)
            for fold in self.folds
            for seed in self.seeds
            for column in self.columns
            for method in self.methods
        ]


@dataclass(frozen=True)
class Result:
    """What came of a cell: a line of the record.

    Log-densities are in nats and in the units of the data; ``log_scale`` added to them gives those of columns
    standardised on the training part.

    Attributes:
        source: Of the cell, as are the next four.
        dequantize: See :class:`Cell`.
        fold: See :class:`Cell`.
        seed: See :class:`Cell`.
        method: See :class:`Cell`.
        status: ``finished`` or ``failed``.
        reason: Why it failed.
        log_prob: Mean log-density of the test rows.
        log_prob_se: Its standard error over them.
        log_scale: Sum of the logarithms of the columns' standard deviations on the training part.
        rows: Number of rows in each part.
        features: Columns that are modelled.
        flow: What was fitted.
        parameters: Numbers it stores.
        steps: Steps of training; None for what takes none.
        seconds: Time of training.
        wall_seconds: Time of the whole process, which baselines of one split share.
        threads: Threads it had.
        stop_reason: Why training ended.
        detail: What was chosen, in words.
        scores: File with the log-density of every test row, in the folder of the benchmark.
        fingerprint: Of the test rows.
        is_drawn: Whether another fold has other rows altogether, as of a toy.
        sha256: Of the file that the data were read from; empty where there is none.
        notes: What a reader should know of the data, as it was told when they were read.
        command: What was run.
        version: Of the program, with its commit where it is known.
        ended: When.
    """

    source: str
    dequantize: Dequantize
    fold: int
    seed: int
    method: str
    status: Status
    reason: str = ""
    log_prob: float | None = None
    log_prob_se: float | None = None
    log_scale: float = 0.0
    rows: Mapping[str, int] = field(default_factory=dict)
    features: int | None = None
    flow: str = ""
    parameters: int | None = None
    steps: int | None = None
    seconds: float | None = None
    wall_seconds: float | None = None
    threads: int | None = None
    stop_reason: str = ""
    detail: str = ""
    scores: str = ""
    fingerprint: str = ""
    is_drawn: bool = False
    sha256: str = ""
    notes: tuple[str, ...] = ()
    command: str = ""
    version: str = ""
    ended: str = ""

    @property
    def test_share(self) -> float:
        """Number of test rows over that of all others."""
        test = self.rows.get("test", 0)
        others = sum(self.rows.values()) - test
        return test / others if others else 0.0

    @property
    def cell(self) -> Cell:
        """The cell it is of."""
        return Cell(self.source, self.dequantize, self.fold, self.seed, self.method)

    def to_line(self) -> str:
        """The result as a line of JSON."""
        from pushforward.common.files import json_safe

        return json.dumps(json_safe(asdict(self)), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """A result from what a line holds; what this version does not know is left out.

        Raises:
            TypeError: If something is missing.
        """
        known = {one.name for one in fields(cls)}
        found: dict[str, Any] = {key: value for key, value in values.items() if key in known}
        found["notes"] = tuple(found.get("notes", ()))
        return cls(**found)


def read_scores(path: Path) -> tuple[npt.NDArray[np.int64], Array]:
    """Numbers of test rows in the data set ``(n,)``, and their log-densities ``(n,)``, in nats and data units.

    Raises:
        RunError: If they cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["row", "log_prob"])
        rows, log_probs = (np.asarray(table[name].to_numpy()) for name in ("row", "log_prob"))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise RunError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    return rows.astype(np.int64), log_probs.astype(np.float64)


def fit_command(cell: Cell, suite: Suite, budget: Budget, out: Path) -> list[str]:
    """Arguments of ``pushforward`` for a cell that is a fit of ours."""
    method = parse_method(cell.method)
    files = [part for file in method.files_for(set_name(cell.source)) for part in ("-c", file)]
    decided = [*cell.data_overrides(suite), *budget.overrides(method), "train.evaluate=false"]
    # The method's own keys come last: what it says of its steps is its budget.
    keys = [*decided, *method.overrides, "--seed", str(cell.seed), "--device", budget.device, "--wandb", "off"]
    return ["fit", cell.source, *files, *keys, "--out", str(out)]


def worker_order(cells: Sequence[Cell], suite: Suite, budget: Budget, folders: Sequence[Path]) -> str:
    """What the worker is told, as its argument: cells of one split that are no fits of ours."""
    first = cells[0]
    return json.dumps(
        {
            "source": first.source,
            "overrides": first.data_overrides(suite),
            "seed": first.seed,
            "methods": [cell.method for cell in cells],
            "folders": [str(folder) for folder in folders],
            "seconds": budget.seconds,
            "steps": budget.steps,
            "device": budget.device,
        }
    )


def in_shell(arguments: Sequence[str], budget: Budget) -> str:
    """A command as it is typed."""
    return shlex.join(["env", f"OMP_NUM_THREADS={budget.threads}", *arguments])


def python() -> str:
    """The interpreter that runs the cells."""
    return sys.executable or "python"
