"""The rows with the lowest and the highest log-density: they show errors of a fit that a mean hides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import Array


@dataclass(frozen=True)
class ScoredRow:
    """A row of the data set with its log-density.

    Attributes:
        row: Number of the row in the data set, from 0.
        log_prob: Log-density of the row, in nats.
        values: Values by column, as recorded.
    """

    row: int
    log_prob: float
    values: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))


@dataclass(frozen=True)
class Extremes:
    """Rows with the lowest (``worst``) and the highest (``best``) log-density, the most extreme first."""

    worst: list[ScoredRow]
    best: list[ScoredRow]

    def to_dict(self) -> dict[str, Any]:
        """Both lists, safe for JSON."""
        return {"worst": [row.to_dict() for row in self.worst], "best": [row.to_dict() for row in self.best]}


def extreme_rows(
    log_probs: Array, rows: Array, row_numbers: Array, columns: Sequence[str], *, count: int = 10
) -> Extremes:
    """Find the rows with the lowest and the highest log-density; NaN counts as the lowest.

    Args:
        log_probs: Log-densities ``(n,)``.
        rows: The rows as recorded ``(n, C)``, with their context if any.
        row_numbers: Numbers of the rows in the data set ``(n,)``.
        columns: Names of the columns.
        count: Number of rows in each list; no row is in both.

    Raises:
        ValueError: If lengths differ.
    """
    if not len(log_probs) == len(rows) == len(row_numbers) or rows.ndim != 2 or rows.shape[1] != len(columns):
        raise ValueError(
            f"extreme_rows: expected as many scores, rows and numbers, and {len(columns)} columns; got "
            f"{len(log_probs)} scores, {len(row_numbers)} numbers and rows of shape {rows.shape}"
        )
    order = np.argsort(np.where(np.isnan(log_probs), -np.inf, log_probs), kind="stable")
    count = min(count, len(order) // 2)

    def scored(indices: Array) -> list[ScoredRow]:
        return [
            ScoredRow(
                int(row_numbers[i]),
                float(log_probs[i]),
                dict(zip(columns, (float(value) for value in rows[i]), strict=True)),
            )
            for i in indices
        ]

    return Extremes(scored(order[:count]), scored(order[::-1][:count]))
