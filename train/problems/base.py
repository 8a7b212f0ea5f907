"""The interface of a problem: what a kind of fit says about its data, its model, its objective and its results."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pushforward.datasets import Schema
from pushforward.evaluate.density import FittedDensity
from pushforward.train.architecture import NEUTRAL, uses_key
from pushforward.train.callbacks import Callback
from pushforward.train.checkpoint import load_checkpoint
from pushforward.train.defaults import Asked
from pushforward.train.device import threads_for
from pushforward.train.objectives.base import Objective
from pushforward.train.objectives.registry import OBJECTIVE_KEYS, find_objective
from pushforward.train.options import FlowOptions, Options
from pushforward.train.selection import Selection
from pushforward.train.state import State, start

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]
Notify = Callable[[str], object]
"""Called with one line for the user."""


@dataclass(frozen=True)
class Figure:
    """A picture: its name, a sentence about it, and the function that draws it into a file."""

    name: str
    caption: str
    draw: Callable[[Path], object]


@dataclass(frozen=True)
class Chart:
    """A chart of dashboards: metrics over the steps, or a final number of each fit."""

    title: str
    metrics: tuple[str, ...]
    is_final: bool = False


@dataclass(frozen=True)
class Headline:
    """One of the numbers that sum up a fit, for lists and reports; ``se`` is its standard error, if it has one."""

    name: str
    value: float | None
    se: float | None = None
    unit: str = "nats"
    note: str = ""


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a fit.

    Attributes:
        density: The fitted density, in the units of the data.
        name: What it is, such as ``nsf-ar`` or ``gaussian``.
        note: Why it is not the trained model alone; empty if it is.
        state: The state after training.
    """

    density: FittedDensity
    name: str
    note: str
    state: State


@dataclass(frozen=True, eq=False)
class Scores:
    """The final numbers of a density.

    Attributes:
        numbers: Values by name; ``val_nll``, ``test_nll`` and ``test_nll_se`` among them, None or NaN where there are
            none.
        headline: The few numbers that sum it up.
        rows: Number of each test row in the data ``(n,)``, or of each test sample.
        log_probs: Log-density of each ``(n,)``, in nats and the units of the data; None if nothing can be tested on.
        references: Constants that dashboards draw as lines beside the metrics.
        weights: Weights of the test rows ``(n,)``; None if they count the same.
        details: What the evaluation of the same kind of problem needs besides.
    """

    numbers: Mapping[str, Any]
    headline: Sequence[Headline]
    rows: Numbers
    log_probs: Array | None
    references: Mapping[str, float] = field(default_factory=dict)
    weights: Array | None = None
    details: Any = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation of a density: numbers, figures, samples.

    Attributes:
        numbers: JSON values.
        lines: The evaluation as plain text.
        figures: The figures.
        samples: Samples ``(n, D)`` and their context ``(n, C)``, as they are written to a table.
        table: Column names and rows of a table for dashboards; None for none.
        references: Constants that dashboards draw as lines beside the metrics.
        summary: Further final numbers for dashboards.
        baselines: Validation NLL of baselines, by label.
    """

    numbers: Mapping[str, Any]
    lines: Sequence[str]
    figures: Sequence[Figure]
    samples: tuple[Array, Array]
    table: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)


class Problem(ABC):
    """What is fitted: rows, a target, or something else; made by :meth:`plan`.

    Attributes:
        kind: Its name in the registry, in run folders and in reports.
        sections: The parts of its reports, by their anchors in ``reports.run``; ``samples`` is their comparison with
            test rows in numbers.
        charts: What dashboards show of its metrics and final numbers, besides losses, NLLs and gradients.
        pictures: Names of the figures of its evaluations.
        words: The kind in a few words, with what asks for it in parentheses; its name in the registry by default.
        keys: The keys that it uses, by group; a group alone stands for all of its keys.
        compared_by: The final number by which sweeps compare its fits: ``val_nll``, or ``val_loss`` without validation
            rows.
        options: The resolved options; model selection replaces them.
        name: Name of the data or the target.
        size: Its size in words, such as ``150 rows x 4 columns``.
        facts: Values that dashboards filter and group by.
        notes: Lines for the user about the data.
        scored: Most rows whose log-densities are stored.
        selection: The result of model selection; None without one.
        selection_folder: Where model selection keeps its candidates, so that it goes on after a kill; None for nowhere.
    """

    kind: ClassVar[str]
    sections: ClassVar[tuple[str, ...]] = ("model", "training", "pictures", "data")
    charts: ClassVar[tuple[Chart, ...]] = ()
    pictures: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[str] = ""
    keys: ClassVar[tuple[str, ...]]
    compared_by: ClassVar[str] = "val_nll"
    options: Options
    name: str
    size: str
    facts: Mapping[str, Any]
    notes: Sequence[str] = ()
    scored: int = 0
    selection: Selection | None = None
    selection_folder: Path | None = None

    @classmethod
    def accepts(cls, asked: Asked) -> bool:
        """Whether keys describe this kind of problem; asked of those that were added, before the built-in ones."""
        return False

    @classmethod
    @abstractmethod
    def plan(cls, asked: Asked, data: Any = None, **more: Any) -> "Problem":
        """Load the data, check the keys, and resolve what is ``auto``.

        Args:
            asked: The keys as they were asked for.
            data: Data in memory, instead of those that the keys name.
            **more: What only some kinds of problems take.

        Raises:
            ConfigError: If keys do not go together.
            DataError: If the data or the target cannot be used.
        """

    @property
    @abstractmethod
    def features(self) -> int:
        """Number of columns that are modelled."""

    @property
    def training_rows(self) -> int | None:
        """Number of training rows; None if they are drawn, so that there is no end to them."""
        return None

    def validation_log_probs(self, density: FittedDensity) -> Array | None:
        """Log-densities of the validation rows ``(m,)``, for paired comparisons; None if there are none."""
        return None

    @property
    def is_open(self) -> bool:
        """Whether the fit still has to select the model."""
        return False

    @property
    def can_evaluate(self) -> bool:
        """Whether there is something to evaluate on."""
        return True

    def uses(self, key: str) -> bool:
        """Whether a key such as ``flow.bins`` has an effect on this fit."""
        group, _, name = key.partition(".")
        if group == "train" and name in OBJECTIVE_KEYS:
            return name in find_objective(self.kind, self.options.objective.name).uses
        if group == "flow" and "flow" in self.keys and not self.is_open:
            flow = self.options.flow
            is_neutral = name in NEUTRAL and getattr(flow, name) == getattr(FlowOptions, name)
            return is_neutral or uses_key(flow, name)
        return group in self.keys or key in self.keys

    @property
    def flow_name(self) -> str:
        """Name of the model in lists of runs; ``auto`` while it is not selected."""
        return self.options.flow.name

    @property
    def description(self) -> str:
        """The model in a few words."""
        return self.flow_name

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON values that describe the data, ``dataset`` and ``sha256`` among them."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the model of the options, with random weights from the seed.

        Raises:
            ConfigError: If the options do not go together.
        """

    def check(self, model: nn.Module) -> None:  # noqa: B027 - most problems have nothing to check
        """Check what can be checked with a new model before a fit, on its device.

        Raises:
            DataError: If the data or the target cannot be used.
        """

    @property
    def plan_facts(self) -> Mapping[str, Any]:
        """What a dry run shows besides the name and the model."""
        return self.facts

    @abstractmethod
    def start(self, device: torch.device, callbacks: Sequence[Callback] = ()) -> State:
        """Select the model if that is open, build it, and initialise it from the data.

        Args:
            device: The device to train on.
            callbacks: Those of the fit; model selection asks them whether to stop.
        """

    def restore(self, device: torch.device, path: Path) -> State:
        """Build the model, and restore the state of a checkpoint.

        Raises:
            CheckpointError: If there is no checkpoint, or it is damaged or of another model.
        """
        model = self.build().to(device).train()
        return load_checkpoint(start(model, self.options.train, seed=self.options.seed), path)

    def objective(self, state: State) -> Objective:
        """The objective, for the steps from a state on."""
        return find_objective(self.kind, self.options.objective.name).make(self, state)

    def threads(self) -> contextlib.AbstractContextManager[None]:
        """Context with the number of threads for training."""
        return threads_for(self.options.flow, self.options.train.batch_size, self.features)

    def progress_figure(self, model: nn.Module) -> Figure | None:
        """A figure of a model in training; None if there is none."""
        return None

    @abstractmethod
    def finish(self, state: State) -> Fitted:
        """Make the density of the trained model."""

    @abstractmethod
    def score(self, density: FittedDensity, stop: Callable[[], str] = lambda: "") -> Scores:
        """Compute the final numbers.

        Args:
            density: The fitted density.
            stop: Returns a reason to leave out what takes long, or an empty string.
        """

    @abstractmethod
    def evaluate(self, density: FittedDensity, scores: Scores, notify: Notify = lambda text: None) -> Evaluation:
        """Evaluate a density beyond its final numbers.

        Args:
            density: The fitted density.
            scores: Its scores.
            notify: Called before each part that takes long.
        """

    @abstractmethod
    def on_rows(
        self, rows: Array, context: Array, schema: Schema, name: str, weights: Array | None = None
    ) -> "Problem":
        """The same problem with other test rows, from a table.

        Args:
            rows: Rows ``(n, D)``.
            context: Their context ``(n, C)``.
            schema: Their columns.
            name: Name of the table.
            weights: Their weights ``(n,)``; None for equal ones.
        """

    def lines(self, scores: Scores, evaluation: Evaluation | None) -> list[str]:
        """The result as lines of text."""
        numbers = [_line(headline) for headline in scores.headline]
        return [*evaluation.lines, "", *numbers[1:]] if evaluation is not None and evaluation.lines else numbers


def _line(headline: Headline) -> str:
    from pushforward.evaluate.likelihood import with_error

    value = headline.value if headline.value is not None else float("nan")
    text = f"{value:.4f}" if headline.se is None else with_error(value, headline.se, 4)
    return " ".join(part for part in (headline.name, text, headline.unit) if part) + headline.note
