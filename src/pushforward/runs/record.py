"""What a run folder says of itself, read from its files alone; what is missing or damaged is noted, never an error."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from pushforward.datasets.targets.names import PREFIX
from pushforward.runs.folder import RunFolder

Array = npt.NDArray[np.float64]
Facts = Mapping[str, Any]

TRAINING_ROWS = 10_000
"""Rows of training that are read at most: many times more than there are points in a curve."""

_TOLD = ("warning: ", "the Gaussian is kept")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The files of a run; an empty mapping or list where there is no file (yet).

    Attributes:
        run: The folder.
        status: The status, as the list of runs shows it.
        config: Configuration by dotted key.
        environment: Versions, machine and command line.
        schema: Columns and parts of the data.
        results: Final numbers.
        evaluation: The evaluation.
        state: Status and progress.
        metrics: Rows of the record of the fit.
        every: Of the rows of training one in so many was read: a long fit has more than can be seen.
        selection: How the fit chose among flows; empty where it did not.
        model: Description of the density that was kept.
        told: Warnings of the fit, without repetition.
        problems: A sentence for each file that cannot be read.
    """

    run: RunFolder
    status: str
    config: Facts
    environment: Facts
    schema: Facts
    results: Facts
    evaluation: Facts
    state: Facts
    metrics: Sequence[Facts]
    every: int = 1
    selection: Facts = field(default_factory=dict)
    model: Facts = field(default_factory=dict)
    told: Sequence[str] = ()
    problems: Sequence[str] = ()

    @property
    def dataset(self) -> str:
        """Name of the data."""
        return str(self.schema.get("dataset") or self.state.get("dataset") or self.config.get("data.source") or "data")

    @property
    def flow(self) -> str:
        """Name of the flow that is kept; that of the flow which is fitted as long as there is none."""
        return str(self.results.get("flow") or self.state.get("flow") or self.config.get("flow.name") or "flow")

    @property
    def is_target(self) -> bool:
        """Whether a density was fitted in place of rows."""
        return self.dataset.startswith(PREFIX)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are modelled."""
        return [str(column["name"]) for column in items(self.schema, "columns") if "name" in column]

    @property
    def context(self) -> list[str]:
        """Names of the columns that are given."""
        return [str(column["name"]) for column in items(self.schema, "context") if "name" in column]

    @property
    def step(self) -> int:
        """The last step there is a row of."""
        steps = [row.get("step") for row in self.metrics]
        return max((step for step in steps if isinstance(step, int) and _fits(step)), default=0)

    @property
    def seconds(self) -> float:
        """The time of fitting at the last row."""
        return max((number(row, "seconds") or 0.0 for row in self.metrics), default=0.0)

    @property
    def kept_step(self) -> float:
        """Steps of training behind the model that is kept; the last step recorded as long as there is none."""
        steps = number(self.results, "steps")
        return self.step if steps is None else steps

    @property
    def evaluated_step(self) -> float | None:
        """Steps behind the evaluation, where the fit went on after it; None where it is of the model that is kept.

        Evaluations of before this was recorded are taken as they are.
        """
        steps = number(self.evaluation, "steps")
        if steps is None or (self.results and number(self.results, "steps") is None):
            return None
        # A fit that has not ended may have logged no row at its last step.
        differs = steps != self.kept_step if self.results else steps < self.kept_step
        return steps if differs else None

    def curve(self, key: str, axis: str = "step") -> tuple[Array, Array]:
        """Values of a metric ``(n,)`` and where they stand, ``step`` or ``seconds``, without those that are missing."""
        pairs = [(row.get(axis), row.get(key)) for row in self.metrics]
        kept = [(x, y) for x, y in pairs if _fits(x) and _fits(y)]
        table = np.array(kept, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def keys(self, prefix: str) -> list[str]:
        """Keys of the metrics that begin so, in the order of their first row."""
        return list(dict.fromkeys(key for row in self.metrics for key in row if key.startswith(prefix)))


def read_run(run: RunFolder) -> RunRecord:
    """Read a run folder, whatever is in it."""
    problems: list[str] = []
    metrics, every = _metrics(run.metrics, problems)
    return RunRecord(
        run,
        _status(run),
        config=_flat(_yaml(run.config, problems)),
        environment=_json(run.environment, problems),
        schema=_json(run.schema, problems),
        results=_json(run.results, problems),
        evaluation=_json(run.path / "evaluation.json", problems),
        state=_json(run.state, problems),
        metrics=metrics,
        every=every,
        selection=_json(run.path / "selection.json", problems),
        model=_json(run.model / "config.json", problems),
        told=_told(run.log),
        problems=problems,
    )


def _status(run: RunFolder) -> str:
    try:
        return str(run.status)
    except Exception:  # whatever is in its place
        return "unreadable"


def number(facts: Facts, *keys: str) -> float | None:
    """A number at the end of a path of keys; None where there is none."""
    value: Any = facts
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return float(value) if _fits(value) and not isinstance(value, bool) and math.isfinite(value) else None


def group(facts: Facts, key: str) -> Facts:
    """A mapping below a key; an empty one where there is none."""
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def items(facts: Facts, key: str) -> list[Facts]:
    """The mappings in a list below a key."""
    value = facts.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _fits(value: object) -> bool:
    """Tell whether a value is a number that a double holds, infinities among them; JSON has larger integers."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e300)


def _metrics(path: Path, problems: list[str]) -> tuple[list[Facts], int]:
    """Rows of the record, and of how many rows of training one was read; a torn last line is left out."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], 1
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return [], 1
    training = [place for place, line in enumerate(lines) if b'"kind": "train"' in line]
    every = max(1, -(-len(training) // TRAINING_ROWS))
    left_out = set(training[:-1]) - set(training[::every])
    rows: list[Facts] = []
    broken = 0
    for place, line in enumerate(lines):
        if place in left_out or not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    if broken:
        problems.append(f"{path.name}: {broken} of {len(lines)} lines hold no JSON object")
    return rows, every


def _json(path: Path, problems: list[str]) -> Facts:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return content


def _yaml(path: Path, problems: list[str]) -> Facts:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except Exception as error:  # tags that do not fit their values raise what they like
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return {}
    return content if isinstance(content, dict) else {}


def _flat(config: Facts) -> Facts:
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            out[str(key)] = value
    return out


def _told(log: Path) -> list[str]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    # Each line begins with its date and time.
    texts = [line.split(" ", 2)[-1] for line in lines]
    return list(dict.fromkeys(text for text in texts if text.startswith(_TOLD)))[:20]
