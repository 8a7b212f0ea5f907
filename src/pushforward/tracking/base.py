"""What a fit records: ``metrics.jsonl``, the record of truth, and everything that follows it.

A row is written with one unbuffered write before the call returns, so that a killed process loses nothing and a
full disk is an error at once, not at the end. Weights & Biases promises neither, and so comes second.
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
    """Something that is told how a fit goes."""

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step, after so many seconds of fitting; ``kind`` says from where they are."""

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record a picture, which stays where it is."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table."""

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Record numbers that hold for all steps up to the last one, which was so many seconds after the first."""

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record a model, which stays in its folder."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""

    def alert(self, title: str, text: str) -> None:
        """Tell someone who is not watching."""

    def finish(self, exit_code: int = 0) -> None:
        """End the record; nothing is recorded afterwards."""


class Tracking:
    """Sends everything to the metrics file first, then to the other trackers.

    Use it as a context manager: an exception finishes the trackers with exit code 1.

    Args:
        metrics: The record of truth; its errors are raised.
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
            run: Where everything is written.
            config: The resolved configuration; its ``wandb`` section says where to.
            dataset: Name of the data, a tag.
            flow: Name of the flow that was chosen, a tag.
            facts: What else dashboards filter and group by, beside the keys of the configuration.
            warn: Called with one line when Weights & Biases is given up, in the thread of the caller.
            resume_step: Step of the checkpoint that is continued.
            job_type: What this process does.
            process: The process that talks to Weights & Biases, where it was started ahead.
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
        """Where Weights & Biases has the run: a URL or a folder; ``None`` while unknown or off."""
        return next((tracker.location for tracker in self.others if isinstance(tracker, WandbTracker)), None)

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step."""
        self._tell(lambda tracker: tracker.log(metrics, step, seconds=seconds, kind=kind))

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record a picture, which must stay as it is until :meth:`finish`."""
        self._tell(lambda tracker: tracker.image(key, path, caption, step))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table where tables are shown; its numbers are in a file of the run already."""
        for tracker in self.others:
            tracker.table(key, columns, rows, step)

    def reference_lines(self, values: Mapping[str, float], last_step: int) -> None:
        """Record numbers that hold for all steps, such as the NLL of a baseline: curves are read against them."""
        if values:
            seconds = self.metrics.seconds
            self._tell(lambda tracker: tracker.reference_lines(values, last_step, seconds))

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record the fitted model, which must stay in its folder."""
        for tracker in self.others:
            tracker.model(folder, facts)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""
        self._tell(lambda tracker: tracker.summary(values))

    def alert(self, title: str, text: str) -> None:
        """Tell someone who is not watching, for instance that the fit diverged."""
        self._tell(lambda tracker: tracker.alert(title, text))

    def _tell(self, call: "Callable[[MetricsFile | Tracker], None]") -> None:
        """Tell the metrics file first, then the others, also where the disk is full."""
        try:
            call(self.metrics)
        finally:
            for tracker in self.others:
                call(tracker)

    def flush(self, *, sync: bool = False) -> None:
        """Make the metrics file survive a power cut (``sync``)."""
        self.metrics.flush(sync=sync)

    def finish(self, exit_code: int = 0) -> None:
        """End every record; a second call does nothing."""
        self.metrics.finish(exit_code)
        for tracker in self.others:
            tracker.finish(exit_code)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(0 if kind is None else 1)
