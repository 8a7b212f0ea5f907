"""The record of the trials of a sweep: an Optuna study in an SQLite file in the folder of the sweep.

It proposes the next trial and records the results. Optuna is imported only when it is needed.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pushforward.common.errors import ConfigError, RunError
from pushforward.config.schema import Config
from pushforward.sweeps.parameter import Parameter
from pushforward.sweeps.pruning import History
from pushforward.sweeps.space import SweepSpace

if TYPE_CHECKING:
    import optuna

# Reasons of failure that do not depend on the parameters: such a trial is repeated when the sweep is resumed.
INTERRUPTED = "interrupted"
KILLED = "its process was killed"


@dataclass(frozen=True)
class TrialRecord:
    """State and result of a trial.

    Attributes:
        number: Number from 0; the name of its folder.
        status: waiting, running, finished, pruned or failed.
        val_nll: Its best validation NLL, in nats and data units; None if it has none.
        values: The searched parameters by key; for the trial of the defaults those that the fit chooses.
        is_default: Whether it is the fit that ``pushforward fit`` would make.
        seconds: Training time; None if unknown.
        reason: Why it failed or ended early, else empty.
        is_repeated: Whether another trial repeats it, so that it does not count.
    """

    number: int
    status: str
    val_nll: float | None
    values: dict[str, Any]
    is_default: bool
    seconds: float | None
    reason: str
    is_repeated: bool


class RunningTrial:
    """A trial that is being fitted.

    Attributes:
        number: Its number.
        values: The searched parameters by key.
        is_default: Whether the fit chooses them itself.
    """

    def __init__(self, trial: "optuna.Trial", values: dict[str, Any], *, is_default: bool) -> None:
        self.trial = trial
        self.number = trial.number
        self.values = values
        self.is_default = is_default


class SweepStudy:
    """The study of a sweep.

    Args:
        path: The database; made if missing.
        space: The search space.
        defaults: The resolved configuration of a fit without a search.
        seed: Seed of the search. A trial depends on it, on its number, and on the results of the trials before it.
    """

    def __init__(self, path: Path, space: SweepSpace, defaults: Config, seed: int) -> None:
        import optuna
        import sqlalchemy

        self.path = path
        self.space = space
        self.seed = seed
        self._defaults = defaults.flat()
        self._searched = space.searched
        if space.method == "grid":
            # For Optuna each parameter of a grid is a list of values.
            grids = [(p.key, p.grid() or ()) for p in space.searched]
            self._searched = tuple(Parameter(key, "categorical", {"values": list(grid)}) for key, grid in grids)
        is_new = not path.exists()
        with self.storage_errors(), _quiet():
            url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
            storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
            self.study = optuna.create_study(
                study_name="sweep", storage=storage, direction="minimize", load_if_exists=not is_new
            )
            if is_new:
                self.study.enqueue_trial(self._default_raw() or {}, user_attrs={"is_default": True})

    @property
    def size(self) -> float:
        """Number of possible trials: the points of a grid, and the defaults if not among them; else infinite."""
        if self.space.method != "grid":
            return math.inf
        return math.prod(len(p.values or ()) for p in self._searched) + (self._default_raw() is None)

    def ask(self, workers: int, trials: int) -> RunningTrial | None:
        """Begin the next trial; None if none is left in the grid.

        Args:
            workers: Trials in parallel.
            trials: About how many there will be: a short search has fewer random trials at its start.
        """
        from optuna.trial import TrialState

        with self.storage_errors(), _quiet():
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if self.space.method == "grid" and not waiting and not self._enqueue_next_point():
                return None
            self.study.sampler = self._sampler(workers, trials)
            trial = self.study.ask()
            is_default = bool(trial.user_attrs.get("is_default"))
            if is_default and self._default_raw() is None:
                # The defaults lie outside the space: their result counts, but the search cannot use it.
                raw: dict[str, Any] = {}
            else:
                raw = {p.key: p.suggest(trial) for p in self._searched}
            values: dict[str, Any] = {p.key: p.value(raw[p.key]) for p in self._searched if p.key in raw}
            if is_default:
                values = {p.key: self._defaults[p.key] for p in self._searched}
            trial.set_user_attr("values", values)
            return RunningTrial(trial, values, is_default=is_default)

    def report(self, running: RunningTrial, iteration: int, best: float) -> None:
        """Record the best validation NLL of a trial until an iteration."""
        with self.storage_errors(), _quiet():
            running.trial.report(best, iteration)

    def finish(self, running: RunningTrial, val_nll: float | None, *, seconds: float | None, pruned: str = "") -> None:
        """Record the result of a trial.

        Args:
            running: The trial.
            val_nll: Its best validation NLL.
            seconds: Training time.
            pruned: Why it was ended early; empty if it was not.
        """
        self._end(running.trial, "PRUNED" if pruned else "COMPLETE", val_nll, seconds=seconds, reason=pruned)

    def fail(self, running: RunningTrial, reason: str) -> None:
        """Record that a trial has no result, and why."""
        self._end(running.trial, "FAIL", None, reason=reason)

    def abandoned(self) -> list[RunningTrial]:
        """Return trials whose state is "running" though their sweep was killed; call it before any trial starts."""
        from optuna.trial import Trial, TrialState

        with self.storage_errors():
            found = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            trials = [Trial(self.study, frozen._trial_id) for frozen in found]
        return [
            RunningTrial(t, t.user_attrs.get("values", {}), is_default=bool(t.user_attrs.get("is_default")))
            for t in trials
        ]

    def repeat_interrupted(self) -> list[int]:
        """Queue again the trials that were interrupted or killed; return their numbers.

        A trial that was killed twice is not queued again, because it may be the cause; the defaults always are, because
        the others are compared with them.
        """
        from optuna.trial import TrialState

        again = []
        with self.storage_errors(), _quiet():
            failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            killed = {t.number for t in failed if t.user_attrs.get("reason") == KILLED}
            repeated = self._repeated()
            for frozen in failed:
                attrs = frozen.user_attrs
                twice = frozen.number in killed and attrs.get("repeats") in killed and not attrs.get("is_default")
                wanted = attrs.get("reason") in (INTERRUPTED, KILLED) and not twice
                if wanted and frozen.number not in repeated:
                    kept = {key: attrs[key] for key in ("is_default", "point") if key in attrs}
                    self.study.enqueue_trial(frozen.params, user_attrs=kept | {"repeats": frozen.number})
                    again.append(frozen.number)
        return again

    def records(self) -> list[TrialRecord]:
        """Return all trials in the order of their numbers."""
        names = {"COMPLETE": "finished", "FAIL": "failed", "PRUNED": "pruned", "RUNNING": "running"}
        with self.storage_errors():
            trials, repeated = self.study.get_trials(deepcopy=False), self._repeated()
        return [
            TrialRecord(
                number=t.number,
                status=names.get(t.state.name, "waiting"),
                val_nll=t.user_attrs.get("val_nll"),
                values=t.user_attrs.get("values", {}),
                is_default=bool(t.user_attrs.get("is_default")),
                seconds=t.user_attrs.get("seconds"),
                reason=t.user_attrs.get("reason", ""),
                is_repeated=t.number in repeated,
            )
            for t in trials
        ]

    def histories(self) -> dict[int, History]:
        """Return iterations and the best NLL so far of each trial by number, without repeated trials."""
        with self.storage_errors():
            trials, repeated = self.study.get_trials(deepcopy=False), self._repeated()
        return {t.number: sorted(t.intermediate_values.items()) for t in trials if t.number not in repeated}

    def importances(self, least: int = 8) -> dict[str, float]:
        """Return the share of the variance among finished trials that each parameter explains (functional ANOVA).

        Args:
            least: Smallest number of finished trials; the result is empty with fewer.
        """
        import optuna

        with self.storage_errors(), _quiet():
            states = (optuna.trial.TrialState.COMPLETE,)
            done = [t for t in self.study.get_trials(deepcopy=False, states=states) if t.params]
            if len(done) < least or len(self._searched) < 2 or len({t.value for t in done}) < 2:
                return {}
            copy = optuna.create_study(direction="minimize")
            copy.add_trials(done)
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            try:
                return dict(optuna.importance.get_param_importances(copy, evaluator=evaluator))
            except (RuntimeError, ValueError):  # for example if a parameter had only one value
                return {}

    @contextlib.contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Turn errors of the database into a ``RunError`` of one line."""
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the innermost error has the message of SQLite
                cause = cause.__cause__
            raise RunError(f"{self.path}: {str(cause).splitlines()[0]}") from None
        except RuntimeError as error:
            if "version" not in str(error):
                raise
            raise RunError(f"{self.path}: made by another version of Optuna: {str(error).splitlines()[0]}") from None

    def _end(
        self,
        trial: "optuna.Trial",
        state: str,
        val_nll: float | None,
        *,
        seconds: float | None = None,
        reason: str = "",
    ) -> None:
        from optuna.trial import TrialState

        with self.storage_errors(), _quiet():
            facts = {"val_nll": val_nll, "seconds": seconds, "reason": reason}
            for key, value in facts.items():
                if value not in (None, ""):
                    trial.set_user_attr(key, value)
            self.study.tell(trial, val_nll if state == "COMPLETE" else None, state=TrialState[state])

    def _repeated(self) -> set[int]:
        """Numbers of trials that another one repeats; the repetition records it, as ended trials are read-only."""
        return {t.user_attrs.get("repeats", -1) for t in self.study.get_trials(deepcopy=False)}

    def _default_raw(self) -> dict[str, Any] | None:
        """The raw numbers of the defaults by key; None if they lie outside the space."""
        raw = {}
        for parameter in self._searched:
            kept = parameter.raw("auto")
            raw[parameter.key] = parameter.raw(self._defaults[parameter.key]) if kept is None else kept
        return None if any(value is None for value in raw.values()) else raw

    def _enqueue_next_point(self) -> bool:
        """Queue the next point of the grid, with the last parameter running fastest; False if none is left."""
        last = max((t.user_attrs.get("point", -1) for t in self.study.get_trials(deepcopy=False)), default=-1)
        default = self._default_raw()
        names = [p.key for p in self._searched]
        points = itertools.product(*(p.values or () for p in self._searched))
        for number, point in enumerate(points):
            raw: Mapping[str, Any] = dict(zip(names, point, strict=True))
            if number > last and raw != default:
                self.study.enqueue_trial(dict(raw), user_attrs={"point": number})
                return True
        return False

    def _sampler(self, workers: int, trials: int) -> "optuna.samplers.BaseSampler":
        """Return a new sampler, seeded by the number of trials, so that a resumed sweep proposes the same trials."""
        import numpy as np
        import optuna

        number = len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.space.method != "bayes":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,  # needed if the trial of the defaults has no parameters
            constant_liar=workers > 1,
            n_startup_trials=max(5, min(10, trials // 3)),
        )


def require_optuna() -> None:
    """Raise a ``ConfigError`` with the command that installs Optuna if it is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError("a sweep needs Optuna: pip install 'pushforward[sweep]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log and warnings inside the block."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
