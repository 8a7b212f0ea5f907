"""The record of a fit in its run folder: status, reserved disk space, progress, trackers, and the report at the end."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pushforward.common.errors import RunError
from pushforward.common.signals import StopOnSignal
from pushforward.config.schema import Config
from pushforward.datasets.targets.names import PREFIX
from pushforward.experiment.callbacks import Guard
from pushforward.reports.run import write_report
from pushforward.runs.disk_space import ReservedSpace
from pushforward.runs.folder import RunFolder
from pushforward.tracking.progress import Progress
from pushforward.tracking.trackers import Tracking
from pushforward.tracking.wandb.location import location_line
from pushforward.tracking.wandb.process import WandbProcess
from pushforward.tracking.wandb.tracker import wandb_mode
from pushforward.train.divergence import DivergedError
from pushforward.train.problems.base import Problem

# Reserved for the report, the samples and the pictures, in case the disk fills up during the fit.
_REPORT_BYTES = 4_000_000


class Record:
    """The record of a fit.

    As a context manager, it always sets the status of the run and writes the report at the end of the block; exceptions
    propagate.

    Args:
        run: The run folder.
        config: The resolved configuration.
        problem: What is fitted.
        parameters: Number of trainable numbers.
        process: The process of the Weights & Biases client.
        quiet: Show no progress bar, only warnings and messages.
        silent: Show nothing; warnings are Python's.
        job_type: Job type of the Weights & Biases run.
        resume_step: Metrics after this step are removed; None for a new run.
        signals: The signals of the fit.

    Attributes:
        progress: Shows metrics and messages.
        tracking: The trackers.
        guard: Turns errors of what is written beside the fit into warnings.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        problem: Problem,
        parameters: int,
        process: WandbProcess,
        *,
        quiet: bool,
        silent: bool,
        job_type: str,
        resume_step: int | None,
        signals: StopOnSignal,
    ) -> None:
        self.run, self.name, self.flow, self.signals = run, problem.name, problem.flow_name, signals
        self.exit_code = 1
        options = problem.options.train
        self._reserve = ReservedSpace(run.path / ".reserve", 4 * parameters + 16 * problem.scored + _REPORT_BYTES)
        try:
            title = f"{self.name}: {problem.size}; {problem.description}, {parameters:,} parameters; {options.budget()}"
            self.progress = Progress(
                steps=options.steps,
                seconds=options.seconds,
                title=f"{title}; run {run.path}",
                log=run.log,
                quiet=quiet,
                hidden=silent,
            )
            self.guard = Guard(run.path, self.progress.message)
            self.tracking = Tracking.open(
                run,
                config,
                dataset=self.name,
                flow=self.flow,
                facts=dict(problem.facts) | {"problem": problem.kind, "parameters": parameters},
                warn=self.guard.warn,
                resume_step=resume_step,
                job_type=job_type,
                process=process,
            )
        except BaseException:
            self._reserve.release()
            raise

    def trained(self) -> None:
        """Release the reserved disk space: training is over."""
        self._reserve.release()

    def mark_diverged(self, error: DivergedError) -> None:
        """Set the status of the run, and notify its owner."""
        self.exit_code = error.exit_code
        self._reserve.release()
        text = f"{self.run.name}: {error}"
        self.guard.write(lambda: self.run.set_status("diverged", **self._status))
        self.guard.write(lambda: self.tracking.alert("fit diverged", text))

    def mark_finished(self, numbers: dict[str, Any]) -> None:
        """Set the status of the run: model and results are written, later errors do not change it.

        Args:
            numbers: Numbers for the list of runs.
        """
        signum = self.signals.signum
        self.run.set_status("stopped" if signum else "finished", **numbers)
        self.exit_code = 128 + signum if signum else 0

    @property
    def _status(self) -> dict[str, str]:
        return {"dataset": self.name, "flow": self.flow}

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.exit_code = 130
            self.guard.write(lambda: self.run.set_status("stopped", **self._status))
        elif error is None and self.signals.signum is not None:  # also if it came after mark_finished
            self.exit_code = 128 + self.signals.signum
        elif error is not None:
            self.exit_code = self.exit_code or 1
            mark_failed(self.run, **self._status)  # before the report reads the status
        self._reserve.release()
        self.guard.write(self.tracking.flush)
        self.guard.run("no report", lambda: write_report(self.run))
        self.tracking.finish(self.exit_code)
        if self.tracking.location is not None:
            self.progress.message(location_line(self.tracking.location, self.run.path))
        self.progress.close()


@contextlib.contextmanager
def new_run(
    config: Config,
    out: Path | None,
    *,
    name: str,
    flow: str,
    problem: str,
    sections: Sequence[str],
    schema: dict[str, Any] | None = None,
) -> Iterator[RunFolder]:
    """Context manager with a new run folder; sets the status to failed on an error, and releases the lock.

    Args:
        config: The configuration to write.
        out: The run folder; None makes one in ``runs/``.
        name: Name of the data or the target.
        flow: Name of the model.
        problem: The kind of problem; ``gradients`` for a gradient study.
        sections: The sections of the report.
        schema: The content of ``schema.json``; None for a run without a model.

    Raises:
        RunError: If the folder cannot be made or written.
    """
    parts = (name.removeprefix(PREFIX), flow, problem if schema is None else "")
    run = RunFolder.create(out, label="-".join(filter(None, parts)))
    try:
        run.write_environment(config.seed, config.device)
        if schema is not None:
            run.write_json("schema.json", schema)
        run.write_config(config)  # last: from now on the run can be resumed
        run.set_status("running", dataset=name, flow=flow, problem=problem, sections=list(sections))
    except BaseException:
        run.discard()
        raise
    try:
        yield run
    except BaseException:
        mark_failed(run, name, flow)
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
        mark_failed(run, name, flow)
        raise


def start_client(config: Config) -> WandbProcess:
    """Start the process of the Weights & Biases client, which imports it while the data are loaded."""
    return WandbProcess(start=wandb_mode(config.wandb.mode) != "off")


def mark_failed(run: RunFolder, dataset: str, flow: str) -> None:
    """Set the status to failed, unless there is a more specific one."""
    try:
        if run.status != "running":
            return
        run.set_status("failed", dataset=dataset, flow=flow)
    except RunError:
        return  # the folder cannot be written, as the first error says
