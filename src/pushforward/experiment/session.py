"""What every fit has around its training: room on the disk, signals, trackers, progress, and an end that is told."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pushforward.common.errors import RunError
from pushforward.config.schema import Config
from pushforward.datasets.targets.names import PREFIX
from pushforward.experiment.recording import Draw, Recording, Watch
from pushforward.experiment.signals import StopOnSignal
from pushforward.reports.run import write_report
from pushforward.runs.disk_space import ReservedSpace
from pushforward.runs.folder import RunFolder
from pushforward.tracking.base import Tracking
from pushforward.tracking.progress import Progress
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.tracker import wandb_mode
from pushforward.train.architecture import describe
from pushforward.train.defaults import settings
from pushforward.train.device import threads_for
from pushforward.train.objectives.base import Objective
from pushforward.train.trainer import DivergedError, State, minimize

# Room for the report, the samples and the pictures, where the disk fills up during the fit.
_REPORT_BYTES = 4_000_000


class Session:
    """A fit in its run folder, from its first message to its last.

    As a context manager it finishes the record whatever happens in the block, and writes the report; an exception is
    recorded and goes on.

    Args:
        run: The run folder.
        config: The configuration, every choice made.
        state: What is trained.
        process: The process that talks to Weights & Biases.
        name: Name of the data or the target.
        flow: What is built, where it is not the flow that is asked for.
        size: What is fitted, in a few words.
        facts: What dashboards filter and group by besides the number of parameters.
        rows_scored: Rows whose scores are kept, for the room on the disk.
        offset: What turns the loss of the objective into one in data units, in nats.
        draw: Draws a picture of the fit in progress.
        quiet: Show warnings and messages only.
        resumed: Whether the state comes from a checkpoint.
        watch: Told how validation goes; what it answers ends the fit early.
        job_type: What Weights & Biases calls this process.
        signum: A signal that has asked the fit to end before this began.

    Attributes:
        parameters: Numbers of what is trained.
        exit_code: What the record will say of how it ended.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        state: State,
        process: WandbProcess,
        *,
        name: str,
        flow: str = "",
        size: str,
        facts: dict[str, Any],
        rows_scored: int = 0,
        offset: float = 0.0,
        draw: Draw | None = None,
        quiet: bool = False,
        resumed: bool = False,
        watch: Watch = lambda fraction, nll: "",
        job_type: str = "fit",
        signum: int | None = None,
    ) -> None:
        self.run, self.config, self.state, self.name = run, config, state, name
        self.flow = flow or config.flow.name
        self.exit_code = 1
        told = settings(config.train)
        self.parameters = sum(p.numel() for p in state.flow.parameters())
        self._reserve = ReservedSpace(run.path / ".reserve", 4 * self.parameters + 16 * rows_scored + _REPORT_BYTES)
        try:
            kind = flow or describe(config.flow)
            title = f"{name}: {size}; {kind}, {self.parameters:,} parameters; {_budget(config)}; run {run.path}"
            self.progress = Progress(steps=told.steps, seconds=told.seconds, title=title, log=run.log, quiet=quiet)
            self.tracking = Tracking.open(
                run,
                config,
                dataset=name,
                flow=self.flow,
                facts=facts | {"parameters": self.parameters},
                warn=self.progress.message,
                resume_step=state.progress.step if resumed else None,
                job_type=job_type,
                process=process,
            )
        except BaseException:
            self._reserve.release()
            raise
        self.recording = Recording(run, self.tracking, self.progress, state, watch, offset=offset, draw=draw)
        self._signals = StopOnSignal()
        self._signals.signum = signum
        self._resumed = resumed

    @property
    def signum(self) -> int | None:
        """The signal that asks the fit to end, None if none did."""
        return self._signals.signum

    def stop(self) -> str:
        """A reason to end the fit now, empty to go on."""
        return {2: "sigint", 15: "sigterm"}.get(self.signum or 0, self.recording.unwanted)

    def keep(self, write: Callable[[], object]) -> None:
        """Write something that a full disk may refuse without ending the fit."""
        self.recording.keep(write)

    def train(self, objective: Objective) -> State:
        """Train until the budget is spent; then what was kept free for the end is given back.

        Raises:
            DivergedError: Once that is recorded.
        """
        progress = self.state.progress
        if self._resumed:
            self.progress.update(progress.step, progress.seconds)
        if self._resumed and self.progress.fraction == 1.0:
            spent = f"nothing is left of the budget ({_budget(self.config)})"
            self.progress.message(f"{spent}; give a larger one to train on")
        try:
            with threads_for(self.config, self.state.flow.features):
                self.state = minimize(
                    self.state,
                    objective,
                    settings(self.config.train),
                    log=self.recording.log,
                    checkpoint=self.recording.checkpoint,
                    stop=self.stop,
                    warn=self.recording.warn,
                )
        except DivergedError as error:
            self.exit_code = 4
            self._reserve.release()
            text = f"{self.run.name}: {error}"
            self.keep(lambda: self.run.set_status("diverged", **self._status))
            self.keep(lambda: self.tracking.alert("fit diverged", text))
            raise
        self.progress.close()
        self._reserve.release()
        return self.state

    def ended(self, facts: dict[str, Any]) -> None:
        """Say that the run is whole; whatever happens after this does not unmake it.

        Args:
            facts: What the list of runs shows.
        """
        self.run.set_status("stopped" if self.signum else "finished", **facts)
        self.exit_code = 128 + self.signum if self.signum else 0

    @property
    def _status(self) -> dict[str, str]:
        return {"dataset": self.name, "flow": self.flow}

    def __enter__(self) -> "Session":
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, traceback)
        if isinstance(error, KeyboardInterrupt):
            self.exit_code = 130
            self.keep(lambda: self.run.set_status("stopped", **self._status))
        elif error is None and self.signum is not None:  # also one that came after the run was whole
            self.exit_code = 128 + self.signum
        elif error is not None:
            self.exit_code = self.exit_code or 1
            _mark_failed(self.run, **self._status)  # before the page says how it is
        self._reserve.release()
        self.keep(self.tracking.flush)
        self.recording.attempt("no report", lambda: write_report(self.run))
        self.tracking.finish(self.exit_code)
        if self.tracking.location is not None:
            self.progress.message(f"W&B       {self.tracking.location}")
        self.progress.close()


@contextlib.contextmanager
def new_run(
    config: Config, out: Path | None, *, name: str, flow: str, schema: dict[str, Any] | None = None, kind: str = ""
) -> Iterator[RunFolder]:
    """A run folder for what the block does, which says so if that fails, and is free afterwards.

    Args:
        config: The configuration, every choice made.
        out: Exactly this folder; None makes one below ``runs/``.
        name: Name of the data or the target.
        flow: What is fitted.
        schema: The content of ``schema.json``; None for what leaves no model.
        kind: What it is, where it is no fit: the end of the folder's name.

    Raises:
        RunError: If the folder cannot be made or written.
    """
    run = RunFolder.create(out, label="-".join(part for part in (name.removeprefix(PREFIX), flow, kind) if part))
    try:
        run.write_config(config)
        run.write_environment(config.seed, config.device)
        if schema is not None:
            run.write_json("schema.json", schema)
        run.set_status("running", dataset=name, flow=flow)
        yield run
    except BaseException:
        _mark_failed(run, name, flow)
        raise
    finally:
        run.release()


@contextlib.contextmanager
def resumed_run(run: RunFolder, config: Config, *, name: str, flow: str) -> Iterator[None]:
    """A run that goes on in the block with this configuration, and says so if that fails; the caller has claimed it."""
    run.write_config(config)
    run.set_status("running")
    try:
        yield
    except BaseException:
        _mark_failed(run, name, flow)
        raise


def start_client(config: Config) -> WandbProcess:
    """The process for Weights & Biases, which gets ready while the data are loaded."""
    return WandbProcess(start=wandb_mode(config.wandb.mode) != "off")


def _mark_failed(run: RunFolder, dataset: str, flow: str) -> None:
    """Say so in the run folder, unless it has said something more telling."""
    try:
        if run.status != "running":
            return
        run.set_status("failed", dataset=dataset, flow=flow)
    except RunError:
        return  # the folder cannot be written: that is what the first error says


def _budget(config: Config) -> str:
    parts = []
    if config.train.steps != "auto":
        parts.append(f"{config.train.steps:,} steps")
    if config.train.seconds != "auto":
        parts.append(f"{config.train.seconds:g} s")
    return " or ".join(parts)
