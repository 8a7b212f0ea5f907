"""The rows a density finds least and most likely: where a fit goes wrong is seldom seen in a mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import Array


@dataclass(frozen=True)
class ScoredRow:
    """A row and its score.

    Attributes:
        row: Its number in the data set, from 0.
        log_prob: Its log-density, in nats.
        values: Its values by column, as recorded.
    """

    row: int
    log_prob: float
    values: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))


@dataclass(frozen=True)
class Extremes:
    """The ends of the scores; ``worst`` begins with the worst, ``best`` with the best."""

    worst: list[ScoredRow]
    best: list[ScoredRow]

    def to_dict(self) -> dict[str, Any]:
        """Both lists, safe for JSON."""
        return {"worst": [row.to_dict() for row in self.worst], "best": [row.to_dict() for row in self.best]}


def extreme_rows(log_probs: Array, rows: Array, numbers: Array, columns: Sequence[str], *, count: int = 10) -> Extremes:
    """Find the rows with the lowest and the highest log-density; an undefined one counts as the lowest.

    Args:
        log_probs: Log-densities ``(n,)``.
        rows: The rows as recorded ``(n, C)``, context included where there is one.
        numbers: Their numbers in the data set ``(n,)``.
        columns: Names of the columns.
        count: Rows at each end; each row stands at one end at most.

    Raises:
        ValueError: For lengths that do not agree.
    """
    if not len(log_probs) == len(rows) == len(numbers) or rows.ndim != 2 or rows.shape[1] != len(columns):
        raise ValueError(
            f"extreme_rows: expected as many scores, rows and numbers, and {len(columns)} columns; got "
            f"{len(log_probs)} scores, {len(numbers)} numbers and rows of shape {rows.shape}"
        )
    order = np.argsort(np.where(np.isnan(log_probs), -np.inf, log_probs), kind="stable")
    count = min(count, len(order) // 2)

    def listed(places: Array) -> list[ScoredRow]:
        return [
            ScoredRow(
                int(numbers[place]),
                float(log_probs[place]),
                dict(zip(columns, (float(value) for value in rows[place]), strict=True)),
            )
            for place in places
        ]

    return Extremes(listed(order[:count]), listed(order[::-1][:count]))
