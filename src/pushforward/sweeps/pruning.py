"""Pruning: stop trials early that are unlikely to be the best, by the rule of Weights & Biases.

``early_terminate: {type: hyperband}`` of Weights & Biases is successive halving without brackets: at certain
iterations, the *bands*, a trial must be among the best ``1/eta`` of all trials that have reached them, ended ones
included. There an iteration is a row of the history with the metric. Fits log one at each validation, evenly over their
budget, so here an iteration is a *share of the budget*, counted in the usual number of validations of a fit. A trial
with fewer, slow validations is thus compared with others after the same time, not after as many validations.

Optuna's own pruners are not used: its Hyperband spreads trials over brackets, most of which never prune early, and
needs a whole ``eta``; its successive halving lets fewer trials continue.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pushforward.common.errors import ConfigError
from pushforward.common.text import unknown_name

History = Sequence[tuple[int, float]]
"""Pairs of an iteration and the best validation NLL so far, in order."""

_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")


@dataclass(frozen=True)
class Hyperband:
    """The pruning rule: bands, and the share of trials that passes each.

    Attributes:
        spec: The entries of the sweep file.
        bands: Iterations at which trials are compared, ascending.
        eta: One trial in ``eta`` passes a band.
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
        """Compute the bands: multiply ``min_iter`` by ``eta``, or divide ``max_iter`` by ``eta`` ``s`` times.

        Args:
            min_iter: The first band; each other one is ``eta`` times the one before.
            max_iter: The number that is divided; has precedence over ``min_iter``, as with Weights & Biases.
            s: Number of bands below ``max_iter``.
            eta: One trial in ``eta`` passes a band; above 1.
            most: Iterations of a whole trial; later bands are left out.

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
        """Read the entry ``early_terminate`` of a sweep file.

        Args:
            spec: The entry.
            at: Returns file and line of a key, given the path of keys to it.
            most: Iterations of a whole trial.

        Raises:
            ConfigError: If the rule or a key is unknown, unsupported, or out of its bounds.
        """
        where = f"{at('early_terminate')}early_terminate: "
        if not isinstance(spec, dict) or spec.get("type") != "hyperband":
            raise ConfigError(f"{where}expected type: hyperband, with min_iter, or max_iter and s")
        for key, value in spec.items():
            here = f"{at('early_terminate', key)}early_terminate: "
            if key not in _KEYS:
                raise ConfigError(f"{here}{unknown_name('key', str(key), _KEYS)}")
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
        options = {key: value for key, value in spec.items() if key not in ("type", "strict")}
        try:
            return cls.create(**options, most=most)
        except ValueError as error:
            raise ConfigError(f"{where}{error} (a fit validates so often)") from None

    def should_prune(self, number: int, histories: Mapping[int, History]) -> bool:
        """Return whether a trial fails to pass the last band that it has reached.

        Args:
            number: Number of the trial.
            histories: Histories of all trials by number, running and ended ones.
        """
        own = histories.get(number, ())
        reached = [band for band in self.bands if own and own[-1][0] >= band]
        if not reached:
            return False
        band = reached[-1]
        values = sorted(value for history in histories.values() if (value := _value_at(history, band)) is not None)
        value = _value_at(own, band)
        assert value is not None
        threshold = values[min(int(len(values) / self.eta), len(values) - 1)]
        return not value <= threshold


def _value_at(history: History, band: int) -> float | None:
    """The value at the first iteration that reaches a band, infinity for NaN; None if the band is not reached."""
    value = next((value for iteration, value in history if iteration >= band), None)
    return math.inf if value is not None and math.isnan(value) else value
