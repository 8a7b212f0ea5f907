"""Read a run folder from its files alone; missing and damaged files are noted, without an error."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from pushforward.common.mappings import flatten
from pushforward.common.text import one_line
from pushforward.runs.folder import RunFolder

Array = npt.NDArray[np.float64]
Facts = Mapping[str, Any]

TRAINING_ROWS = 10_000
"""Maximum number of training rows read: many times the number of points of a plotted curve."""

_SECTIONS_OF_ROWS = (
    "likelihood", "regression", "model", "training", "pictures", "samples", "calibration", "rows", "data",
)  # fmt: skip
_WARNING_STARTS = ("warning: ", "the Gaussian is kept")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The contents of a run folder; an empty mapping or list for a file that does not exist (yet).

    Attributes:
        run: The folder.
        status: Status, as in the list of runs.
        config: Configuration by dotted key.
        environment: Versions, machine and command line.
        schema: Columns and splits of the data.
        results: Final numbers.
        evaluation: The evaluation.
        state: Status and progress.
        metrics: Rows of ``metrics.jsonl``.
        stride: One in this many training rows of ``metrics.jsonl`` was read.
        selection: Result of model selection; empty without one.
        gradients: Measurements of a gradient study; empty for a fit.
        model: Description of the saved density.
        warnings: Distinct warnings of the fit.
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
    stride: int = 1
    selection: Facts = field(default_factory=dict)
    gradients: Facts = field(default_factory=dict)
    model: Facts = field(default_factory=dict)
    warnings: Sequence[str] = ()
    problems: Sequence[str] = ()

    @property
    def dataset(self) -> str:
        """Name of the data."""
        return str(self.schema.get("dataset") or self.state.get("dataset") or self.config.get("data.source") or "data")

    @property
    def flow(self) -> str:
        """Name of the saved flow, or of the flow being fitted."""
        return str(self.results.get("flow") or self.state.get("flow") or self.config.get("flow.name") or "flow")

    @property
    def sections(self) -> Sequence[str]:
        """Sections of its report that show results, as its problem wrote them; those of rows if they are damaged."""
        found = self.state.get("sections")
        return [str(section) for section in found] if isinstance(found, list) else _SECTIONS_OF_ROWS

    @property
    def columns(self) -> list[str]:
        """Names of the modelled columns."""
        return [str(column["name"]) for column in items(self.schema, "columns") if "name" in column]

    @property
    def context(self) -> list[str]:
        """Names of the context columns."""
        return [str(column["name"]) for column in items(self.schema, "context") if "name" in column]

    @property
    def step(self) -> int:
        """The last recorded step."""
        steps = [row.get("step") for row in self.metrics]
        return max((step for step in steps if isinstance(step, int) and _is_number(step)), default=0)

    @property
    def seconds(self) -> float:
        """Time of fitting at the last recorded row."""
        return max((number(row, "seconds") or 0.0 for row in self.metrics), default=0.0)

    @property
    def kept_step(self) -> float:
        """Training steps of the saved model, or the last recorded step."""
        steps = number(self.results, "steps")
        return self.step if steps is None else steps

    @property
    def evaluated_step(self) -> float | None:
        """Training steps of the evaluated model if it is older than the saved one; None if it is the saved one.

        None, too, for evaluations that do not record their step.
        """
        steps = number(self.evaluation, "steps")
        if steps is None or (self.results and number(self.results, "steps") is None):
            return None
        # A fit that is still running may have no row for its last step.
        differs = steps != self.kept_step if self.results else steps < self.kept_step
        return steps if differs else None

    def curve(self, key: str, axis: str = "step") -> tuple[Array, Array]:
        """Return the ``step`` or ``seconds`` ``(n,)`` and the values ``(n,)`` of a metric, without missing ones."""
        pairs = [(row.get(axis), row.get(key)) for row in self.metrics]
        present = [(x, y) for x, y in pairs if _is_number(x) and _is_number(y)]
        table = np.array(present, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def keys(self, prefix: str) -> list[str]:
        """Return the metrics whose keys start with a prefix, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.metrics for key in row if key.startswith(prefix)))


def read_run(run: RunFolder) -> RunRecord:
    """Read a run folder in any state."""
    problems: list[str] = []
    metrics, stride = _metrics(run.metrics, problems)
    return RunRecord(
        run,
        _status(run),
        config=flatten(_yaml(run.config, problems)),
        environment=_json(run.environment, problems),
        schema=_json(run.schema, problems),
        results=_json(run.results, problems),
        evaluation=_json(run.path / "evaluation.json", problems),
        state=_json(run.state, problems),
        metrics=metrics,
        stride=stride,
        selection=_json(run.path / "selection.json", problems),
        gradients=_json(run.path / "gradients.json", problems),
        model=_json(run.model / "config.json", problems),
        warnings=_warnings(run.log),
        problems=problems,
    )


def _status(run: RunFolder) -> str:
    try:
        return str(run.status)
    except Exception:  # state.json may hold anything
        return "unreadable"


def number(facts: Facts, *keys: str) -> float | None:
    """Return the finite number at a path of keys; None if there is none."""
    value: Any = facts
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return float(value) if _is_number(value) and not isinstance(value, bool) and math.isfinite(value) else None


def group(facts: Facts, key: str) -> Facts:
    """Return the mapping at a key; empty if there is none."""
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def items(facts: Facts, key: str) -> list[Facts]:
    """Return the mappings in the list at a key."""
    value = facts.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    """Return whether a value is a number that fits into a float, infinities included; JSON integers may be larger."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e300)


def _metrics(path: Path, problems: list[str]) -> tuple[list[Facts], int]:
    """Return the rows of ``metrics.jsonl`` and the stride of training rows; an incomplete last line is skipped."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], 1
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return [], 1
    training = [index for index, line in enumerate(lines) if b'"kind": "train"' in line]
    stride = max(1, -(-len(training) // TRAINING_ROWS))
    left_out = set(training[:-1]) - set(training[::stride])
    rows: list[Facts] = []
    broken = 0
    for index, line in enumerate(lines):
        if index in left_out or not line.endswith(b"\n"):
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
    return rows, stride


def _json(path: Path, problems: list[str]) -> Facts:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {one_line(error)}")
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
    except Exception as error:  # YAML tags with wrong values raise any error
        problems.append(f"{path.name} cannot be read: {one_line(error)}")
        return {}
    return content if isinstance(content, dict) else {}


def _warnings(log: Path) -> list[str]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    # Each line starts with date and time.
    texts = [line.split(" ", 2)[-1] for line in lines]
    return list(dict.fromkeys(text for text in texts if text.startswith(_WARNING_STARTS)))[:20]
