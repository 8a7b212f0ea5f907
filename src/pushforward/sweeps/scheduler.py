"""The running of a sweep: workers, what they are at, and what is decided from what they report."""

import contextlib
import itertools
import math
import os
import queue
import time
from collections.abc import Callable
from typing import Any

from pushforward.common.errors import ConfigError, RunError
from pushforward.experiment.signals import StopOnSignal
from pushforward.sweeps.space import ITERATIONS
from pushforward.sweeps.study import INTERRUPTED, LiveTrial, TrialRecord
from pushforward.sweeps.summary import best_of, trial_line
from pushforward.sweeps.sweep import Sweep
from pushforward.sweeps.worker import Message, Worker

OUT_OF_TIME = "out of time"
HOPELESS = "hopeless"

# After so many failures in a row, of the same kind, nothing else is to be expected: from the start, and later on.
_HOPELESS_START, _HOPELESS_LATER = 3, 8
# What a fit may still do after it was told to end: score, write, let Weights & Biases finish.
_END_SECONDS = 120.0
_CLOSE_SECONDS = 5.0


def run_sweep(
    sweep: Sweep,
    *,
    workers: int = 1,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[float, str], None] = lambda done, text: None,
) -> dict[str, Any]:
    """Fit trials until there are enough, the time is over, or a signal comes (then ``signum`` is set).

    Where there is a result and from then on all trials fail, it ends too (then ``has_given_up`` is set).

    Args:
        sweep: The sweep, from ``Sweep.create`` or ``Sweep.open``.
        workers: Trials side by side; each has its share of the cores.
        tell: Takes a line for each trial that ends.
        progress: Told after every validation how many trials are done, with their parts, and where they are.

    Returns:
        The summary, as in ``sweep.json``.

    Raises:
        ConfigError, DataError, RunError, DivergedError: What the first trials all failed with.
        RunError: If the database cannot be written.
    """
    sweep.settle_abandoned(tell)
    again = sweep.study.repeat_interrupted()
    if again:
        tell(f"trials that were interrupted are fitted again: {', '.join(map(str, again))}")
    return TrialScheduler(sweep, workers, tell, progress).run()


class TrialScheduler:
    """Workers and what they are at, from the first order until all is still."""

    def __init__(
        self, sweep: Sweep, workers: int, tell: Callable[[str], None], progress: Callable[[float, str], None]
    ) -> None:
        self.sweep = sweep
        self.study = sweep.study
        self.tell = tell
        self.progress = progress
        self.done = 0  # trials that count
        self.most_workers = workers
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.workers: list[Worker] = []
        self.live: dict[int, LiveTrial] = {}
        self.best: dict[int, float] = {}
        self.histories = {number: list(history) for number, history in self.study.histories().items()}
        self.shares: dict[int, float] = {}
        self.ending = ""  # why no more trials begin
        self.until = math.inf  # when trials that were told to end must have ended
        self.failures: list[tuple[str, list[str]]] = []

    def run(self) -> dict[str, Any]:
        sweep, began = self.sweep, time.monotonic()
        limit = sweep.facts.get("seconds_wanted")
        try:
            with StopOnSignal() as signals:
                while True:
                    if not self.ending:
                        self._start_trials()
                    if not self.live:
                        break
                    with contextlib.suppress(queue.Empty):
                        self._hear(self.inbox.get(timeout=0.1))
                    if signals.signum is not None and self.ending != INTERRUPTED:
                        self._end_trials(INTERRUPTED)
                    elif limit is not None and time.monotonic() - began > limit and not self._is_cut_short:
                        self._end_trials(OUT_OF_TIME)
                    if time.monotonic() > self.until:
                        self.tell("trials that do not end are killed")
                        break
                sweep.signum = signals.signum
        finally:
            for worker in self.workers:
                if worker.trial is not None:
                    worker.terminate()
            for worker in self.workers:
                worker.close(_CLOSE_SECONDS)
            with contextlib.suppress(RunError):
                for live in self.live.values():  # an error, a second Ctrl-C, or one that does not end
                    self.study.fail(live, INTERRUPTED)
                sweep.write()
        summary = sweep.write(compared=sweep.signum is None)
        if sweep.signum is None and summary["best"] is None and self.failures:
            raise _as_error(*self.failures[-1])
        return summary

    def _start_trials(self) -> None:
        sweep = self.sweep
        while len(self.live) < self.most_workers:
            counted = [t for t in self.study.records() if t.status in ("finished", "pruned", "failed")]
            self.done = sum(not t.is_repeated for t in counted)
            best = best_of(counted)
            target = sweep.space.target
            if target is not None and best is not None and best.val_nll is not None and best.val_nll <= target:
                self.tell(f"the target is reached: {best.val_nll:.4f}")
                self.ending = "target"
                return
            if self.done + len(self.live) >= sweep.trials_wanted:
                return
            live = self.study.ask(self.most_workers, sweep.trials_wanted)
            if live is None:
                return
            self.live[live.number] = live
            self._idle_worker().order(live.number, sweep.path / "trials" / str(live.number), self._overrides(live))

    def _idle_worker(self) -> Worker:
        # One that has died keeps its place, and its log, until its last words have been heard.
        self.workers = [worker for worker in self.workers if worker.is_alive or worker.trial is not None]
        for worker in self.workers:
            if worker.trial is None:
                return worker
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        logs = (self.sweep.path / f"worker-{number}.log" for number in itertools.count())
        log = next(log for log in logs if log not in {worker.log for worker in self.workers})
        worker = Worker(max(1, cores // self.most_workers), log, self.inbox)
        self.workers.append(worker)
        return worker

    def _overrides(self, live: LiveTrial) -> list[str]:
        space, name = self.sweep.space, self.sweep.path.resolve().name
        own = {"wandb.group": name, "wandb.name": f"{name}-{live.number}"}
        values = {} if live.is_default else live.values
        return [f"{key}={value}" for key, value in (own | space.constants | values).items()]

    def _hear(self, message: Message) -> None:
        worker, body = message
        if worker.trial is None or worker.trial not in self.live:  # the end of one that had nothing to do
            return
        live = self.live[worker.trial]
        if body is not None and "fraction" in body:
            self._show(live.number, body["fraction"])
            worker.tell({"stop": self._verdict(live, body["fraction"], body["nll"])})
            return
        self._conclude(live, body, "" if body is not None else worker.last_words())
        worker.trial = None
        del self.live[live.number]
        self.shares.pop(live.number, None)
        self.tell(trial_line(self._record(live.number), self.sweep.space, self.study.records()))
        self.sweep.write()
        self._give_up_if_hopeless()

    def _show(self, number: int, share: float) -> None:
        self.shares[number] = share
        trials = (f"trial {n}" + (f" val {self.best[n]:.4f}" if n in self.best else "") for n in sorted(self.shares))
        self.progress(self.done + sum(self.shares.values()), "  ".join(trials))

    def _verdict(self, live: LiveTrial, fraction: float, nll: float | None) -> str:
        """Take a report of validation; answers why the trial is to end, or nothing."""
        iteration, history = round(ITERATIONS * fraction), self.histories.setdefault(live.number, [])
        best = min(self.best.get(live.number, math.inf), math.inf if nll is None else nll)
        self.best[live.number] = best
        if (not history or iteration > history[-1][0]) and math.isfinite(best):
            history.append((iteration, best))
            self.study.report(live, iteration, best)
        hyperband = self.sweep.space.hyperband
        # The defaults go to their end, so that no sweep is worse than a fit.
        if hyperband is None or live.is_default:
            return ""
        return "pruned" if hyperband.is_hopeless(live.number, self.histories) else ""

    def _conclude(self, live: LiveTrial, body: dict[str, Any] | None, last_words: str) -> None:
        """Record what came of a trial."""
        stopped = self.ending if self._is_cut_short else ""
        done = (body or {}).get("done")
        if done is not None and done["val_nll"] is not None and (body or {})["signum"] is None:
            pruned = "pruned" if done["stop_reason"] == "pruned" else ""
            self.study.finish(live, done["val_nll"], seconds=done["seconds"], pruned=pruned)
            self.failures.clear()
        elif stopped == OUT_OF_TIME and done is not None:
            self.study.finish(live, done["val_nll"], seconds=done["seconds"], pruned=stopped)
        elif stopped:
            self.study.fail(live, INTERRUPTED)
        else:
            text, kinds = last_words, ["RunError"]
            if done is not None:
                text = "its process was told to end" if body and body["signum"] else "its validation NLL is not finite"
            elif body is not None:
                text, kinds = body["failed"], body["kinds"]
            self.failures.append((text, kinds))
            self.study.fail(live, text)

    def _give_up_if_hopeless(self) -> None:
        """Begin no more trials where all fail; without a result there is but the error of the last one."""
        if self.ending:
            return
        has_best = best_of(self.study.records()) is not None
        allowed = _HOPELESS_LATER if has_best else _HOPELESS_START
        last = self.failures[-allowed:]
        if len(last) < allowed or len({kinds[0] for _, kinds in last}) > 1:
            return
        if not has_best:
            raise _as_error(*last[-1])
        self.tell(f"no more trials begin: the last {allowed} failed, the last one with: {last[-1][0]}")
        self.ending = HOPELESS
        self.sweep.has_given_up = True

    @property
    def _is_cut_short(self) -> bool:
        """Whether the trials that run were told to end."""
        return self.ending in (INTERRUPTED, OUT_OF_TIME)

    def _end_trials(self, why: str) -> None:
        self.ending = why
        self.until = time.monotonic() + _END_SECONDS
        for worker in self.workers:
            if worker.trial is not None and worker.is_alive:
                worker.terminate()

    def _record(self, number: int) -> TrialRecord:
        return next(t for t in self.study.records() if t.number == number)


def _as_error(text: str, kinds: list[str]) -> Exception:
    """What a trial failed with, for the exit code of its kind."""
    from pushforward.common.errors import DataError
    from pushforward.train.trainer import DivergedError

    known: dict[str, type[Exception]] = {
        "ConfigError": ConfigError,
        "DataError": DataError,
        "DivergedError": DivergedError,
    }
    kind = next((known[name] for name in kinds if name in known), RunError)
    return kind(f"no trial works: {text}")
