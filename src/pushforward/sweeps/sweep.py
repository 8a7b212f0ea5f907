"""The folder of a sweep: many fits of the same data, compared by their validation NLL.

It contains ``sweep.yaml`` (the search space, for ``pushforward sweep -c`` and ``wandb sweep`` alike), ``sweep.db`` (the
study), ``sweep.json`` (the summary), ``trials/<number>`` (ordinary run folders), and ``best``, a link to one of them.
One process holds its lock, keeps the record, and sends trials to the workers. Test rows are not used.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import ConfigError, RunError, RunUsageError
from pushforward.common.files import write_text
from pushforward.config.resolved import resolved
from pushforward.datasets.tables.files.local_file import is_stream
from pushforward.datasets.targets.names import PREFIX
from pushforward.runs.folder import RunFolder, making_folder, unique_name
from pushforward.sweeps.parameter import Parameter
from pushforward.sweeps.space import SweepSpace, read_space
from pushforward.sweeps.study import KILLED, SweepStudy, TrialRecord
from pushforward.sweeps.summary import best_of, summarize, validation_value

if TYPE_CHECKING:
    from pushforward.train.problems.base import Problem

DEFAULT_TRIALS = 20

# A worker notices at its next validation that its sweep was killed.
_ABANDONED_SECONDS = 60.0
_NO_EVALUATION = Parameter.constant("train.evaluate", False)


class Sweep:
    """The folder of a sweep, locked by this process; close it, or use it as a context manager.

    Make one with :meth:`create` or :meth:`open`.

    Attributes:
        path: The folder.
        space: The search space.
        defaults: The resolved configuration of a fit without a search.
        facts: The part of the summary that does not depend on the trials.
        study: The record of the trials.
        signum: The signal that ended the sweep; None if none did.
        has_given_up: Whether the sweep ended because its trials failed.
    """

    def __init__(self, folder: RunFolder, space: SweepSpace, problem: "Problem", facts: dict[str, Any]) -> None:
        self.path = folder.path
        self.space = space
        self.defaults = resolved(space.check(), problem.options, problem.uses)
        self.facts = facts
        self._problem = problem
        self.signum: int | None = None
        self.has_given_up = False
        self._folder = folder
        self.study = SweepStudy(self.path / "sweep.db", space, self.defaults, self.defaults.seed)

    @classmethod
    def create(
        cls, space: SweepSpace, *, out: Path | None = None, trials: int | None = None, seconds: float | None = None
    ) -> "Sweep":
        """Make the folder of a new sweep.

        Args:
            space: The search space; its constants name the data.
            out: The folder; None makes ``sweeps/<data>-<date>-<time>-<id>``.
            trials: Number of trials; None for the ``run_cap`` of the space, else all points of a grid, else 20.
            seconds: Time limit of the whole sweep, from its start; None for no limit.

        Raises:
            ConfigError: If the space is wrong, or a flow cannot be built.
            DataError: If the data cannot be used.
            RunUsageError: If ``out`` is not a new or empty folder.
            RunError: If it cannot be written.
        """
        from pushforward.experiment.run import plan

        config = space.check()
        if is_stream(config.data.source):
            raise ConfigError(f"data.source: every trial reads it, and {config.data.source} only once; give it as DATA")
        problem = plan(config, strict=False)
        space = space.for_problem(problem)
        # The resolved path, which holds in any working directory.
        source = Parameter.constant("data.source", problem.options.data.source)
        space = space.fixed([source, *([] if "train.evaluate" in space.constants else [_NO_EVALUATION])])
        if out is None:
            out = Path("sweeps") / unique_name(problem.name.removeprefix(PREFIX), "sweep")
        folder = RunFolder(Path(out))
        with making_folder(folder.path, "the folder", f"to go on: --resume {out}"):
            folder.claim()
            (folder.path / "trials").mkdir()
            write_text(folder.path / "sweep.yaml", space.to_yaml())
        facts = {
            "data": problem.name,
            "metric": problem.compared_by,
            "sha256": problem.schema()["sha256"],
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "trials_wanted": trials or space.run_cap,
            "seconds_wanted": seconds,
        }
        try:
            sweep = cls(folder, space, problem, facts)
            if facts["trials_wanted"] is None:
                facts["trials_wanted"] = int(sweep.study.size) if space.method == "grid" else DEFAULT_TRIALS
            sweep.write()
        except BaseException:
            folder.release()
            raise
        return sweep

    @classmethod
    def open(
        cls, path: Path, *, source: str | None = None, trials: int | None = None, seconds: float | None = None
    ) -> "Sweep":
        """Open the folder of a sweep to resume it.

        Args:
            path: The folder.
            source: Where the file with the data is now; None for the same place.
            trials: Number of trials, existing ones included; None for the same as before.
            seconds: Time limit from now on; None for no limit.

        Raises:
            RunUsageError: If it is not the folder of a sweep.
            RunError: If another process uses it, or its database is broken.
            DataError: If the data have changed, or are not there any more.
        """
        from pushforward.experiment.data_source import check_content, check_source
        from pushforward.experiment.run import plan

        folder = RunFolder(Path(path))
        missing = [name for name in ("sweep.yaml", "sweep.db", "sweep.json") if not (folder.path / name).is_file()]
        if missing:
            raise RunUsageError(f"{path} is not the folder of a sweep (no {missing[0]})")
        try:
            facts = json.loads((folder.path / "sweep.json").read_text(encoding="utf-8"))
            kept = {key: facts[key] for key in ("data", "metric", "sha256", "started", "trials_wanted")}
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{folder.path / 'sweep.json'}: expected the summary of a sweep; it is damaged") from None
        folder.claim()
        try:
            space = read_space(folder.path / "sweep.yaml")
            if source is not None:
                space = space.fixed([Parameter.constant("data.source", source)])
            config, command = space.check(), f"pushforward sweep --resume {path} FILE"
            check_source(folder, config.data, command)
            problem = plan(config, strict=False)
            check_content(folder, problem.schema(), kept["sha256"], command)
            if source is not None:
                space = space.fixed([Parameter.constant("data.source", problem.options.data.source)])
                write_text(folder.path / "sweep.yaml", space.to_yaml())
            kept |= {"trials_wanted": trials or kept["trials_wanted"], "seconds_wanted": seconds}
            return cls(folder, space, problem, kept)
        except BaseException:
            folder.release()
            raise

    @property
    def trials_wanted(self) -> int:
        """Number of trials wanted, at most the size of a grid."""
        return int(min(self.facts["trials_wanted"], self.study.size))

    def write(self, *, compared: bool = False) -> dict[str, Any]:
        """Write the summary and the link to the best trial; returns the summary.

        Args:
            compared: Whether to compare the best trial with the defaults, at the cost of scoring the validation rows
                with both models.
        """
        records = self.study.records()
        summary = self.facts | summarize(self.path, self.space, self.defaults, records)
        if compared:
            summary |= self._compared(best_of(records), records)
        self._folder.write_json("sweep.json", summary)
        if summary["best"] is not None:
            _link(self.path / "best", f"trials/{summary['best']['number']}")
        return summary

    def _compared(self, best: TrialRecord | None, records: list[TrialRecord]) -> dict[str, Any]:
        """Return the paired difference between the best trial and the defaults on the validation rows.

        Empty if one of the two models cannot be loaded.
        """
        from pushforward.common.errors import DataError
        from pushforward.evaluate.density import FittedDensity
        from pushforward.evaluate.likelihood import paired_difference
        from pushforward.flows import ModelFileError

        default = next((t for t in records if t.is_default and t.status == "finished"), None)
        if best is None or default is None or best.number == default.number:
            return {}
        scores: list[Any] = []
        for number in (best.number, default.number):
            try:
                density = FittedDensity.load(self.path / "trials" / str(number) / "model")
            except (ModelFileError, DataError, OSError):
                return {}
            scores.append(self._problem.validation_log_probs(density))
        if any(log_probs is None for log_probs in scores):
            return {}
        gain, se = paired_difference(*scores)
        return {"gain": gain, "gain_se": se, "validation_rows": len(scores[0])}

    def close(self) -> None:
        """Release the lock of the folder."""
        self._folder.release()

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def record_abandoned_trials(self, notify: Callable[[str], None]) -> None:
        """Record the results of trials that were running when their sweep was killed.

        Args:
            notify: Called with a line of text if a trial is still running.

        Raises:
            RunError: If a trial does not end within a minute.
        """
        deadline = time.monotonic() + _ABANDONED_SECONDS
        for trial in self.study.abandoned():
            run = RunFolder(self.path / "trials" / str(trial.number))
            if run.status == "running":
                notify(f"trial {trial.number} is still ending; waiting for its process")
            while run.status == "running":
                if time.monotonic() > deadline:
                    raise RunError(f"{run.path}: in use by another process")
                time.sleep(0.2)
            results: dict[str, Any] = {}
            if run.status == "finished":
                with contextlib.suppress(OSError, ValueError):
                    results = json.loads(run.results.read_text(encoding="utf-8"))
            value = validation_value(results)
            if value is None:
                self.study.fail(trial, KILLED)
                if run.status in ("killed", "unreadable") and run.path.is_dir():
                    run.set_status("failed")
            else:
                pruned = "pruned" if results.get("stop_reason") == "pruned" else ""
                self.study.finish(trial, value, seconds=results.get("seconds"), pruned=pruned)


def _link(link: Path, target: str) -> None:
    """Point a symbolic link to another target in one atomic step; do nothing if the file system has no links."""
    with contextlib.suppress(OSError, NotImplementedError):
        if link.is_symlink() and os.readlink(link) == target:
            return
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(".best")  # the process holds the lock of the folder
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        os.replace(temporary, link)
