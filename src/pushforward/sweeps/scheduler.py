"""Run the trials of a sweep in worker processes: start them, prune them, record their results."""

import contextlib
import itertools
import math
import os
import queue
import time
from collections.abc import Callable
from typing import Any

from pushforward.common.errors import ConfigError, RunError
from pushforward.common.signals import StopOnSignal
from pushforward.sweeps.study import INTERRUPTED, RunningTrial, TrialRecord
from pushforward.sweeps.summary import best_of, trial_line
from pushforward.sweeps.sweep import Sweep
from pushforward.sweeps.worker import Message, Worker
from pushforward.train.options import VALIDATIONS

OUT_OF_TIME = "out of time"
TARGET_REACHED = "target"
ALL_FAIL = "all fail"

# The sweep ends after so many failures of the same kind in a row: without any result, and with one.
_MAX_FAILURES_WITHOUT_RESULT, _MAX_FAILURES = 3, 8
# Time for a fit to end after it was asked to: it scores its rows, writes its files and closes Weights & Biases.
_END_SECONDS = 120.0
_CLOSE_SECONDS = 5.0


def run_sweep(
    sweep: Sweep,
    *,
    workers: int = 1,
    notify: Callable[[str], None] = lambda text: None,
    progress: Callable[[float, str], None] = lambda done, text: None,
) -> dict[str, Any]:
    """Run trials until there are enough, the time is over, or a signal comes (then ``sweep.signum`` is set).

    The sweep also ends if there is a result and all later trials fail (then ``sweep.has_given_up`` is set).

    Args:
        sweep: The sweep, from ``Sweep.create`` or ``Sweep.open``.
        workers: Trials in parallel; each has an equal share of the cores.
        notify: Called with a line of text for each trial that ends.
        progress: Called after every validation with the number of trials done, fractions of running ones included,
            and a text about the running ones.

    Returns:
        The summary, as in ``sweep.json``.

    Raises:
        ConfigError, DataError, RunError, DivergedError: The error of the first trials, if they all fail.
        RunError: If the database cannot be written.
    """
    sweep.record_abandoned_trials(notify)
    again = sweep.study.repeat_interrupted()
    if again:
        notify(f"trials that were interrupted are fitted again: {', '.join(map(str, again))}")
    return TrialScheduler(sweep, workers, notify, progress).run()


class TrialScheduler:
    """Runs trials in workers, from the first trial until all have ended.

    Args:
        sweep: The sweep.
        max_workers: Trials in parallel.
        notify: Called with a line of text for each trial that ends.
        progress: Called after every validation; see :func:`run_sweep`.

    Attributes:
        running: The running trials by number.
        histories: Iterations and the best validation NLL so far of each trial, by number.
        stop_reason: Why no more trials start; empty while they do.
    """

    def __init__(
        self, sweep: Sweep, max_workers: int, notify: Callable[[str], None], progress: Callable[[float, str], None]
    ) -> None:
        self.sweep = sweep
        self.study = sweep.study
        self.notify = notify
        self.progress = progress
        self.max_workers = max_workers
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.workers: list[Worker] = []
        self.running: dict[int, RunningTrial] = {}
        self.histories = {number: list(history) for number, history in self.study.histories().items()}
        self.stop_reason = ""
        self._done = 0  # trials that count towards the number wanted
        self._best: dict[int, float] = {}  # best validation NLL so far
        self._fractions: dict[int, float] = {}  # share of the budget that running trials have used
        self._kill_time = math.inf  # when trials that were asked to end are killed
        self._failures: list[tuple[str, list[str]]] = []  # since the last success: message, names of the error classes

    def run(self) -> dict[str, Any]:
        """Run the trials; returns the summary. See :func:`run_sweep`."""
        sweep, began = self.sweep, time.monotonic()
        limit = sweep.facts.get("seconds_wanted")
        try:
            with StopOnSignal() as signals:
                while True:
                    if not self.stop_reason:
                        self._start_trials()
                    if not self.running:
                        break
                    with contextlib.suppress(queue.Empty):
                        self._handle(self.messages.get(timeout=0.1))
                    if signals.signum is not None and self.stop_reason != INTERRUPTED:
                        self._end_trials(INTERRUPTED)
                    elif limit is not None and time.monotonic() - began > limit and not self._are_trials_ending:
                        self._end_trials(OUT_OF_TIME)
                    if time.monotonic() > self._kill_time:
                        self.notify("trials that do not end are killed")
                        break
                sweep.signum = signals.signum
        finally:
            for worker in self.workers:
                if worker.trial is not None:
                    worker.terminate()
            for worker in self.workers:
                worker.close(_CLOSE_SECONDS)
            with contextlib.suppress(RunError):
                for trial in self.running.values():  # after an error, a second Ctrl-C, or a kill
                    self.study.fail(trial, INTERRUPTED)
                sweep.write()
        summary = sweep.write(compared=sweep.signum is None)
        if sweep.signum is None and summary["best"] is None and self._failures:
            raise _as_error(*self._failures[-1])
        return summary

    def idle_worker(self) -> Worker:
        """Return a worker without a trial; start one if there is none."""
        # A dead worker keeps its place and its log until the output of its last trial has been read.
        self.workers = [worker for worker in self.workers if worker.is_alive or worker.trial is not None]
        for worker in self.workers:
            if worker.trial is None:
                return worker
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        logs = (self.sweep.path / f"worker-{number}.log" for number in itertools.count())
        log = next(log for log in logs if log not in {worker.log for worker in self.workers})
        worker = Worker(max(1, cores // self.max_workers), log, self.messages)
        self.workers.append(worker)
        return worker

    def handle_validation(self, trial: RunningTrial, fraction: float, nll: float | None) -> str:
        """Record a validation of a trial; return ``pruned`` if the trial must end, else an empty text.

        Args:
            trial: The trial.
            fraction: Share of its budget that it has used.
            nll: Validation NLL; None if not finite.
        """
        iteration, history = round(VALIDATIONS * fraction), self.histories.setdefault(trial.number, [])
        best = min(self._best.get(trial.number, math.inf), math.inf if nll is None else nll)
        self._best[trial.number] = best
        if (not history or iteration > history[-1][0]) and math.isfinite(best):
            history.append((iteration, best))
            self.study.report(trial, iteration, best)
        hyperband = self.sweep.space.hyperband
        # The trial with the defaults is never pruned, so that no sweep is worse than a fit.
        if hyperband is None or trial.is_default:
            return ""
        return "pruned" if hyperband.should_prune(trial.number, self.histories) else ""

    def _start_trials(self) -> None:
        sweep = self.sweep
        while len(self.running) < self.max_workers:
            ended = [t for t in self.study.records() if t.status in ("finished", "pruned", "failed")]
            self._done = sum(not t.is_repeated for t in ended)
            best = best_of(ended)
            target = sweep.space.target
            if target is not None and best is not None and best.val_nll is not None and best.val_nll <= target:
                self.notify(f"the target is reached: {best.val_nll:.4f}")
                self.stop_reason = TARGET_REACHED
                return
            if self._done + len(self.running) >= sweep.trials_wanted:
                return
            trial = self.study.ask(self.max_workers, sweep.trials_wanted)
            if trial is None:
                return
            self.running[trial.number] = trial
            folder = sweep.path / "trials" / str(trial.number)
            self.idle_worker().start_trial(trial.number, folder, self._overrides(trial))

    def _overrides(self, trial: RunningTrial) -> list[str]:
        space, name = self.sweep.space, self.sweep.path.resolve().name
        own = {"wandb.group": name, "wandb.name": f"{name}-{trial.number}"}
        values = {} if trial.is_default else trial.values
        return [f"{key}={value}" for key, value in (own | space.constants | values).items()]

    def _handle(self, message: Message) -> None:
        """Answer a validation, or record the end of a trial."""
        worker, body = message
        if worker.trial is None or worker.trial not in self.running:  # an idle worker has ended
            return
        trial = self.running[worker.trial]
        if body is not None and "fraction" in body:
            self._show_progress(trial.number, body["fraction"])
            worker.send({"stop": self.handle_validation(trial, body["fraction"], body["nll"])})
            return
        self._record_end(trial, body, "" if body is not None else worker.last_output())
        worker.trial = None
        del self.running[trial.number]
        self._fractions.pop(trial.number, None)
        self.notify(trial_line(self._record(trial.number), self.study.records()))
        self.sweep.write()
        self._stop_if_all_fail()

    def _show_progress(self, number: int, fraction: float) -> None:
        self._fractions[number] = fraction
        trials = (
            f"trial {n}" + (f" val {self._best[n]:.4f}" if n in self._best else "") for n in sorted(self._fractions)
        )
        self.progress(self._done + sum(self._fractions.values()), "  ".join(trials))

    def _record_end(self, trial: RunningTrial, body: dict[str, Any] | None, last_output: str) -> None:
        """Record the result of a trial; without a body its process has died."""
        stop_reason = self.stop_reason if self._are_trials_ending else ""
        done = (body or {}).get("done")
        if done is not None and done["val_nll"] is not None and (body or {})["signum"] is None:
            pruned = "pruned" if done["stop_reason"] == "pruned" else ""
            self.study.finish(trial, done["val_nll"], seconds=done["seconds"], pruned=pruned)
            self._failures.clear()
        elif stop_reason == OUT_OF_TIME and done is not None:
            self.study.finish(trial, done["val_nll"], seconds=done["seconds"], pruned=stop_reason)
        elif stop_reason:
            self.study.fail(trial, INTERRUPTED)
        else:
            text, kinds = last_output, ["RunError"]
            if done is not None:
                text = "its process was asked to end" if body and body["signum"] else "its validation NLL is not finite"
            elif body is not None:
                text, kinds = body["failed"], body["kinds"]
            self._failures.append((text, kinds))
            self.study.fail(trial, text)

    def _stop_if_all_fail(self) -> None:
        """Start no more trials if the last ones all failed; without any result, raise the error of the last one."""
        if self.stop_reason:
            return
        has_best = best_of(self.study.records()) is not None
        allowed = _MAX_FAILURES if has_best else _MAX_FAILURES_WITHOUT_RESULT
        last = self._failures[-allowed:]
        if len(last) < allowed or len({kinds[0] for _, kinds in last}) > 1:
            return
        if not has_best:
            raise _as_error(*last[-1])
        self.notify(f"no more trials begin: the last {allowed} failed, the last one with: {last[-1][0]}")
        self.stop_reason = ALL_FAIL
        self.sweep.has_given_up = True

    @property
    def _are_trials_ending(self) -> bool:
        """Whether the running trials were asked to end."""
        return self.stop_reason in (INTERRUPTED, OUT_OF_TIME)

    def _end_trials(self, reason: str) -> None:
        self.stop_reason = reason
        self._kill_time = time.monotonic() + _END_SECONDS
        for worker in self.workers:
            if worker.trial is not None and worker.is_alive:
                worker.terminate()

    def _record(self, number: int) -> TrialRecord:
        return next(t for t in self.study.records() if t.number == number)


def _as_error(text: str, kinds: list[str]) -> Exception:
    """Return the error of a trial as an exception of its class, which decides the exit code.

    Args:
        text: The message.
        kinds: Names of the class of the error and of its base classes.
    """
    from pushforward.common.errors import DataError
    from pushforward.train.divergence import DivergedError

    known: dict[str, type[Exception]] = {
        "ConfigError": ConfigError,
        "DataError": DataError,
        "DivergedError": DivergedError,
    }
    kind = next((known[name] for name in kinds if name in known), RunError)
    return kind(f"no trial works: {text}")
