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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

History = Sequence[tuple[int, float]]
"""Iterations and the best validation NLL until then, in order."""


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
