"""Record a fit with several trackers: ``metrics.jsonl``, the record of truth, then Weights & Biases and others.

A row of ``metrics.jsonl`` is one unbuffered write before the call returns: a killed process loses nothing, and a full
disk is an error at once. The others guarantee neither, and so come later.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pushforward.common.text import one_line
from pushforward.config.schema import Config
from pushforward.runs.folder import RunFolder
from pushforward.tracking.base import Tracker
from pushforward.tracking.jsonl import MetricsFile
from pushforward.tracking.registry import TRACKERS, WANDB
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.tracker import WandbTracker


class Tracking:
    """Passes everything to the metrics file first, then to the other trackers.

    As a context manager, it finishes the trackers with exit code 1 after an exception.

    Args:
        metrics: The record of truth, whose errors are raised.
        others: Trackers by name. One that raises is finished and left out from then on.
        warn: Called with a line of text for each that raised.
    """

    def __init__(
        self,
        metrics: MetricsFile,
        others: Mapping[str, Tracker] | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.metrics = metrics
        self.others = dict(others or {})
        self._warn = warn

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
            config: The resolved configuration, with the key ``track`` and the ``wandb`` section.
            dataset: Name of the data set, a tag.
            flow: Name of the chosen flow, a tag.
            facts: Values added to the configuration that trackers get, for filters and groups.
            warn: Called with a line of text, in the thread of the caller, when a tracker is turned off.
            resume_step: Step of the checkpoint that the fit resumes from.
            job_type: Job type in Weights & Biases.
            process: The client process of Weights & Biases, if it was already started.
        """
        tracking = cls(MetricsFile(run.metrics, resume_step), warn=warn)
        values = config.flat() | {"dataset": dataset} | dict(facts)
        wandb = WandbTracker(
            run.path,
            values,
            mode=config.wandb.mode,
            project=config.wandb.project,
            name=config.wandb.name or run.name,
            group=config.wandb.group,
            tags=(flow, dataset, *config.wandb.tags),
            job_type=job_type,
            warn=warn,
            process=process,
        )
        if wandb.mode != "off":
            tracking.others[WANDB] = wandb
        for name in dict.fromkeys(config.track):
            if name != WANDB:
                try:
                    made = TRACKERS[name](run.path.resolve(), values, name=run.name, tags=(flow, dataset))
                    tracking.others[name] = made
                except Exception as error:  # of somebody else's code
                    tracking._turn_off(name, error)
        return tracking

    @property
    def location(self) -> str | None:
        """URL or folder of the run in Weights & Biases; ``None`` while unknown or off."""
        wandb = self.others.get(WANDB)
        return wandb.location if isinstance(wandb, WandbTracker) else None

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step."""
        self._each(lambda tracker: tracker.log(metrics, step, seconds=seconds, kind=kind))

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record an image file, which must not change until :meth:`finish`."""
        self._each(lambda tracker: tracker.image(key, path, caption, step))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table, except in the metrics file: the run folder has a file with its numbers."""
        self._each_other(lambda tracker: tracker.table(key, columns, rows, step))

    def reference_lines(self, values: Mapping[str, float], last_step: int) -> None:
        """Record constants, such as the NLL of a baseline, to be drawn as lines beside curves."""
        if values:
            seconds = self.metrics.seconds
            self._each(lambda tracker: tracker.reference_lines(values, last_step, seconds))

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record the fitted model, whose files must stay in their folder."""
        self._each_other(lambda tracker: tracker.model(folder, facts))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""
        if values:
            self._each(lambda tracker: tracker.summary(values))

    def alert(self, title: str, text: str) -> None:
        """Notify the owner of the run, for instance that the fit diverged."""
        self._each(lambda tracker: tracker.alert(title, text))

    def flush(self, *, sync: bool = False) -> None:
        """Write rows that failed before; ``sync`` calls fsync."""
        self.metrics.flush(sync=sync)

    def finish(self, exit_code: int = 0) -> None:
        """Finish all trackers; a second call does nothing."""
        self.metrics.finish(exit_code)
        self._each_other(lambda tracker: tracker.finish(exit_code))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(0 if kind is None else 1)

    def _each(self, call: "Callable[[MetricsFile | Tracker], None]") -> None:
        """Call the metrics file first, then the others, even if the disk is full."""
        try:
            call(self.metrics)
        finally:
            self._each_other(call)

    def _each_other(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.others.items()):
            try:
                call(tracker)
            except Exception as error:  # of somebody else's code
                self._turn_off(name, error)

    def _turn_off(self, name: str, error: Exception) -> None:
        tracker = self.others.pop(name, None)
        if tracker is not None:
            with contextlib.suppress(Exception):
                tracker.finish(1)
        what = f"{type(error).__name__}: {one_line(error)}"
        self._warn(f"tracker {name}: {what}; it is off for the rest of this fit, metrics.jsonl goes on")
