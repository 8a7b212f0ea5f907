"""Ending hopeless trials early, by the rule with which Weights & Biases ends them.

Its ``early_terminate: {type: hyperband}`` is successive halving without brackets: at certain iterations, the bands, a
trial must be among the best ``1/eta`` of all trials that have come so far, the ended ones included. It says iteration
for a row of the history that has the metric; our fits log one for each validation, and validate evenly over their
budget. Here an iteration is therefore a *share of the budget*, in as many parts as a fit validates: a trial that
validates less often, because its validations are slow, is compared with others after the same time, not after the
same count.

Optuna's own pruners differ: its Hyperband spreads trials over brackets, of which most never prune early, and needs
a whole ``eta``; its successive halving lets fewer trials through. They are not used.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pushforward.common.errors import ConfigError
from pushforward.common.text import did_you_mean

History = Sequence[tuple[int, float]]
"""Iterations and the best validation NLL until then, in order."""

_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")


@dataclass(frozen=True)
class Hyperband:
    """Bands and the share of trials that passes each.

    Attributes:
        spec: As the sweep file has it.
        bands: Iterations at which trials are compared, ascending.
        eta: One in so many passes.
    """

    spec: tuple[tuple[str, int | float | str | bool], ...]
    bands: tuple[int, ...]
    eta: float

    @classmethod
    def create(
        cls,
        *,
        min_iter: int | None = None,
        max_iter: int | None = None,
        s: float | None = None,
        eta: float = 3,
        most: int,
    ) -> "Hyperband":
        """Compute the bands, from the first (``min_iter``) up or from the last (``max_iter``) ``s`` times down.

        Args:
            min_iter: First band; the others are ``eta`` times the one before.
            max_iter: What is divided by ``eta``, ``s`` times; goes before ``min_iter`` as with Weights & Biases.
            s: Number of bands below ``max_iter``.
            eta: One in so many passes; above 1.
            most: Iterations of a whole trial; bands beyond are left out.

        Raises:
            ValueError: If there is no band.
        """
        bands: list[int] = []
        if max_iter is not None and s is not None:
            band = float(max_iter)
            for _ in range(int(s)):
                band /= eta
                if band < 1:
                    break
                bands.append(int(band))
        elif min_iter is not None:
            band = float(min_iter)
            while band < most:
                bands.append(int(band))
                band *= eta
        found = tuple(sorted({band for band in bands if band < most}))
        if not found:
            raise ValueError(f"no band below {most}, the iterations of a trial")
        given = {"type": "hyperband", "min_iter": min_iter, "max_iter": max_iter, "s": s, "eta": eta}
        return cls(tuple((k, v) for k, v in given.items() if v is not None), found, eta)

    @classmethod
    def read(cls, spec: Any, at: Callable[..., str], *, most: int) -> "Hyperband":
        """Read what a sweep file says below ``early_terminate``.

        Args:
            spec: What stands there.
            at: Gives file and line of a key, by the keys that lead to it.
            most: Iterations of a whole trial.

        Raises:
            ConfigError: With one line: a rule or a key that is not known, not supported, or out of its bounds.
        """
        where = f"{at('early_terminate')}early_terminate: "
        if not isinstance(spec, dict) or spec.get("type") != "hyperband":
            raise ConfigError(f"{where}expected type: hyperband, with min_iter, or max_iter and s")
        for key, value in spec.items():
            here = f"{at('early_terminate', key)}early_terminate: "
            if key not in _KEYS:
                raise ConfigError(
                    f"{here}unknown key '{key}'; {did_you_mean(str(key), _KEYS)}known: {', '.join(_KEYS)}"
                )
            if key == "strict" and value is not False:
                raise ConfigError(f"{here}strict: expected false (the strict rule is not supported); got {value!r}")
            if key in ("type", "strict"):
                continue
            whole = key in ("min_iter", "max_iter")
            kind = int if whole else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or value < 1 or (key == "eta" and value == 1):
                expected = "a number above 1" if key == "eta" else "a whole number above 0" if whole else "1 or more"
                raise ConfigError(f"{here}{key}: expected {expected}; got {value!r}")
        if "min_iter" not in spec and not ("max_iter" in spec and "s" in spec):
            raise ConfigError(f"{where}expected min_iter, or max_iter and s")
        told = {key: value for key, value in spec.items() if key not in ("type", "strict")}
        try:
            return cls.create(**told, most=most)
        except ValueError as error:
            raise ConfigError(f"{where}{error} (a fit validates so often)") from None

    def is_hopeless(self, number: int, histories: Mapping[int, History]) -> bool:
        """Whether a trial is not among those that pass the last band it has come to.

        Args:
            number: The trial.
            histories: Of all trials by number, running and ended.
        """
        own = histories.get(number, ())
        reached = [band for band in self.bands if own and own[-1][0] >= band]
        if not reached:
            return False
        band = reached[-1]
        there = sorted(value for history in histories.values() if (value := _at(history, band)) is not None)
        value = _at(own, band)
        assert value is not None
        threshold = there[min(int(len(there) / self.eta), len(there) - 1)]
        return not value <= threshold


def _at(history: History, band: int) -> float | None:
    """The value at the first iteration not before a band; infinite where it is no number."""
    value = next((value for iteration, value in history if iteration >= band), None)
    return math.inf if value is not None and math.isnan(value) else value
