"""Record a fit with several trackers: ``metrics.jsonl``, the record of truth, then Weights & Biases.

A row of ``metrics.jsonl`` is one unbuffered write before the call returns: a killed process loses nothing, and a full
disk is an error at once. Weights & Biases guarantees neither, and so comes second.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pushforward.config.schema import Config
from pushforward.runs.folder import RunFolder
from pushforward.tracking.jsonl import MetricsFile
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.tracker import WandbTracker


class Tracker(Protocol):
    """Records metrics, images, tables and models of a fit."""

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step and a time of fitting; ``kind`` is their source, such as ``validation``."""

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record an image file, which stays where it is."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table."""

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Record constants, which are drawn as lines from the first step to the last one at ``seconds``."""

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record a model, which stays in its folder."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""

    def alert(self, title: str, text: str) -> None:
        """Notify the owner of the run."""

    def finish(self, exit_code: int = 0) -> None:
        """End the record; later calls record nothing."""


class Tracking:
    """Passes everything to the metrics file first, then to the other trackers.

    As a context manager, it finishes the trackers with exit code 1 after an exception.

    Args:
        metrics: The record of truth, whose errors are raised.
        others: Trackers that never raise.
    """

    def __init__(self, metrics: MetricsFile, others: Sequence[Tracker] = ()) -> None:
        self.metrics = metrics
        self.others = list(others)

    @classmethod
    def open(
        cls,
        run: RunFolder,
        config: Config,
        *,
        dataset: str,
        flow: str,
        facts: Mapping[str, Any],
        warn: Callable[[str], None],
        resume_step: int | None = None,
        job_type: str = "fit",
        process: WandbProcess | None = None,
    ) -> "Tracking":
        """Open the trackers of a run.

        Args:
            run: The run folder.
            config: The resolved configuration, with the ``wandb`` section.
            dataset: Name of the data set, a tag in Weights & Biases.
            flow: Name of the chosen flow, a tag in Weights & Biases.
            facts: Values added to the configuration in Weights & Biases, for filters and groups.
            warn: Called with a line of text, in the thread of the caller, when Weights & Biases is turned off.
            resume_step: Step of the checkpoint that the fit resumes from.
            job_type: Job type in Weights & Biases.
            process: The client process of Weights & Biases, if it was already started.
        """
        metrics = MetricsFile(run.metrics, resume_step)
        wandb = WandbTracker(
            run.path,
            config.flat() | {"dataset": dataset} | dict(facts),
            mode=config.wandb.mode,
            project=config.wandb.project,
            name=config.wandb.name or run.name,
            group=config.wandb.group,
            tags=(flow, dataset, *config.wandb.tags),
            job_type=job_type,
            warn=warn,
            process=process,
        )
        return cls(metrics, [wandb] if wandb.mode != "off" else [])

    @property
    def location(self) -> str | None:
        """URL or folder of the run in Weights & Biases; ``None`` while unknown or off."""
        return next((tracker.location for tracker in self.others if isinstance(tracker, WandbTracker)), None)

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step."""
        self._each(lambda tracker: tracker.log(metrics, step, seconds=seconds, kind=kind))

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record an image file, which must not change until :meth:`finish`."""
        self._each(lambda tracker: tracker.image(key, path, caption, step))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table, except in the metrics file: the run folder has a file with its numbers."""
        for tracker in self.others:
            tracker.table(key, columns, rows, step)

    def reference_lines(self, values: Mapping[str, float], last_step: int) -> None:
        """Record constants, such as the NLL of a baseline, to be drawn as lines beside curves."""
        if values:
            seconds = self.metrics.seconds
            self._each(lambda tracker: tracker.reference_lines(values, last_step, seconds))

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record the fitted model, whose files must stay in their folder."""
        for tracker in self.others:
            tracker.model(folder, facts)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""
        if values:
            self._each(lambda tracker: tracker.summary(values))

    def alert(self, title: str, text: str) -> None:
        """Notify the owner of the run, for instance that the fit diverged."""
        self._each(lambda tracker: tracker.alert(title, text))

    def _each(self, call: "Callable[[MetricsFile | Tracker], None]") -> None:
        """Call the metrics file first, then the others, even if the disk is full."""
        try:
            call(self.metrics)
        finally:
            for tracker in self.others:
                call(tracker)

    def flush(self, *, sync: bool = False) -> None:
        """Write rows that failed before; ``sync`` calls fsync."""
        self.metrics.flush(sync=sync)

    def finish(self, exit_code: int = 0) -> None:
        """Finish all trackers; a second call does nothing."""
        self.metrics.finish(exit_code)
        for tracker in self.others:
            tracker.finish(exit_code)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(0 if kind is None else 1)
