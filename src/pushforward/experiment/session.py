"""What every kind of fit needs around its training: disk space, signals, trackers, progress, status, report."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pushforward.common.errors import RunError
from pushforward.config.schema import Config
from pushforward.datasets.targets.names import PREFIX
from pushforward.experiment.recording import Draw, Recorder, Watch
from pushforward.experiment.signals import StopOnSignal
from pushforward.reports.run import write_report
from pushforward.runs.disk_space import ReservedSpace
from pushforward.runs.folder import RunFolder
from pushforward.tracking.base import Tracking
from pushforward.tracking.progress import Progress
from pushforward.tracking.wandb.location import location_line
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.tracker import wandb_mode
from pushforward.train.architecture import describe
from pushforward.train.defaults import train_options
from pushforward.train.device import threads_for
from pushforward.train.objectives.base import Objective
from pushforward.train.trainer import DivergedError, State, minimize

# Reserved for the report, the samples and the pictures, in case the disk fills up during the fit.
_REPORT_BYTES = 4_000_000


class Session:
    """Trains in a run folder, with signals, trackers and progress.

    As a context manager, it always sets the status of the run and writes the report at the end of the block; exceptions
    propagate.

    Args:
        run: The run folder.
        config: The resolved configuration.
        state: The state to train.
        process: The process of the Weights & Biases client.
        name: Name of the data or the target.
        flow: Name of the model, if it is not ``flow.name``.
        size: Size of the problem, for the first message.
        facts: Values that dashboards filter and group by; the number of parameters is added.
        rows_scored: Rows whose log-densities are stored, to reserve disk space.
        offset: Added to an NLL in standardised units to get data units, in nats.
        draw: Draws a picture of the fit in progress.
        quiet: Show no progress bar, only warnings and messages.
        resumed: Whether the state comes from a checkpoint.
        watch: Called after every validation; a reason that it returns ends the fit.
        job_type: Job type of the Weights & Biases run.
        signum: A signal that arrived before the session began.

    Attributes:
        parameters: Number of trainable parameters.
        exit_code: The exit code that the trackers receive at the end.
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
        options = train_options(config.train)
        self.parameters = sum(p.numel() for p in state.flow.parameters())
        self._reserve = ReservedSpace(run.path / ".reserve", 4 * self.parameters + 16 * rows_scored + _REPORT_BYTES)
        try:
            kind = flow or describe(config.flow)
            title = f"{name}: {size}; {kind}, {self.parameters:,} parameters; {_budget(config)}; run {run.path}"
            self.progress = Progress(
                steps=options.steps, seconds=options.seconds, title=title, log=run.log, quiet=quiet
            )
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
        self.recorder = Recorder(run, self.tracking, self.progress, state, watch, offset=offset, draw=draw)
        self._signals = StopOnSignal()
        self._signals.signum = signum
        self._resumed = resumed

    @property
    def signum(self) -> int | None:
        """The signal that arrived, None without a signal."""
        return self._signals.signum

    def stop_reason(self) -> str:
        """Why to stop the fit now; empty to continue."""
        return self._signals.reason or self.recorder.stop_reason

    def write_safely(self, write: Callable[[], object]) -> None:
        """Write something; if that fails, warn and let the fit continue."""
        self.recorder.write_safely(write)

    def train(self, objective: Objective) -> State:
        """Train until the budget is spent, then release the reserved disk space.

        Raises:
            DivergedError: If the loss does not stay finite; the status of the run says so.
        """
        progress = self.state.progress
        if self._resumed:
            self.progress.update(progress.step, progress.seconds)
        if self._resumed and self.progress.fraction == 1.0:
            spent = f"the budget is already spent ({_budget(self.config)})"
            self.progress.message(f"{spent}; give a larger one to continue training")
        try:
            with threads_for(self.config, self.state.flow.features):
                self.state = minimize(
                    self.state,
                    objective,
                    train_options(self.config.train),
                    log=self.recorder.log,
                    checkpoint=self.recorder.checkpoint,
                    stop=self.stop_reason,
                    warn=self.recorder.warn,
                )
        except DivergedError as error:
            self.exit_code = 4
            self._reserve.release()
            text = f"{self.run.name}: {error}"
            self.write_safely(lambda: self.run.set_status("diverged", **self._status))
            self.write_safely(lambda: self.tracking.alert("fit diverged", text))
            raise
        self.progress.close()
        self._reserve.release()
        return self.state

    def mark_finished(self, numbers: dict[str, Any]) -> None:
        """Set the status of the run: model and results are written, later errors do not change it.

        Args:
            numbers: Numbers for the list of runs.
        """
        self.run.set_status("stopped" if self.signum else "finished", **numbers)
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
            self.write_safely(lambda: self.run.set_status("stopped", **self._status))
        elif error is None and self.signum is not None:  # also if it came after mark_finished
            self.exit_code = 128 + self.signum
        elif error is not None:
            self.exit_code = self.exit_code or 1
            _mark_failed(self.run, **self._status)  # before the report reads the status
        self._reserve.release()
        self.write_safely(self.tracking.flush)
        self.recorder.run_safely("no report", lambda: write_report(self.run))
        self.tracking.finish(self.exit_code)
        if self.tracking.location is not None:
            self.progress.message(location_line(self.tracking.location, self.run.path))
        self.progress.close()


@contextlib.contextmanager
def new_run(
    config: Config, out: Path | None, *, name: str, flow: str, schema: dict[str, Any] | None = None, kind: str = ""
) -> Iterator[RunFolder]:
    """Context manager with a new run folder; sets the status to failed on an error, and releases the lock.

    Args:
        config: The resolved configuration.
        out: The run folder; None makes one in ``runs/``.
        name: Name of the data or the target.
        flow: Name of the model.
        schema: The content of ``schema.json``; None for a run without a model.
        kind: Kind of a run that is not a fit, for the end of the folder's name.

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
    except BaseException:
        run.discard()
        raise
    try:
        yield run
    except BaseException:
        _mark_failed(run, name, flow)
        raise
    finally:
        run.release()


@contextlib.contextmanager
def resumed_run(run: RunFolder, config: Config, *, name: str, flow: str) -> Iterator[None]:
    """Context manager that resumes a run, and sets the status to failed on an error; the caller has claimed the run."""
    run.write_config(config)
    run.set_status("running")
    try:
        yield
    except BaseException:
        _mark_failed(run, name, flow)
        raise


def start_client(config: Config) -> WandbProcess:
    """Start the process of the Weights & Biases client, which imports it while the data are loaded."""
    return WandbProcess(start=wandb_mode(config.wandb.mode) != "off")


def _mark_failed(run: RunFolder, dataset: str, flow: str) -> None:
    """Set the status to failed, unless there is a more specific one."""
    try:
        if run.status != "running":
            return
        run.set_status("failed", dataset=dataset, flow=flow)
    except RunError:
        return  # the folder cannot be written, as the first error says


def _budget(config: Config) -> str:
    parts = []
    if config.train.steps != "auto":
        parts.append(f"{config.train.steps:,} steps")
    if config.train.seconds != "auto":
        parts.append(f"{config.train.seconds:g} s")
    return " or ".join(parts)
