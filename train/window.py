"""Means of the numbers of the steps between two rows of metrics."""

import time

import torch
from torch import Tensor

from pushforward.train.objectives.base import Metrics, Objective


class MetricsWindow:
    """Sums of the numbers of the steps since the last row of metrics, kept on the device.

    Args:
        objective: Names the metrics of the numbers.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums: Tensor | None = None
        self.count = 0
        self.began = time.perf_counter()

    def add(self, numbers: Tensor, norm: Tensor) -> None:
        """Add the numbers ``(k,)`` of a step and its gradient norm ``()``; does not wait for the device."""
        row = torch.cat([numbers, norm.reshape(1).to(numbers.dtype)])
        self.sums = row if self.sums is None else self.sums + row
        self.count += 1

    def pause(self, seconds: float) -> None:
        """Leave out time in which no steps were taken."""
        self.began += seconds

    def read(self) -> Metrics:
        """The metrics of the means, and reset the sums; empty if no step was added."""
        if self.sums is None:
            return {}
        *means, norm = (self.sums / self.count).tolist()
        rate = self.count * self.objective.batch_size / (time.perf_counter() - self.began)
        self.sums, self.count, self.began = None, 0, time.perf_counter()
        return self.objective.metrics(means) | {"train/grad_norm": norm, "perf/rows_per_s": rate}
