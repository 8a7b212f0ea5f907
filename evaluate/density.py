"""A density fitted to a table: the flow, the columns it stands for, and the cells of recorded values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from pushforward.common.errors import DataError
from pushforward.datasets import Dequantizer, Schema
from pushforward.evaluate.evaluation import draw_samples
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, log_prob
from pushforward.flows import Autoencoder, Flow, Mixture, Model, ModelFileError, load_model, read_extra, save


class FittedDensity:
    """Log-densities and samples of a table's rows, in the units of the table.

    A recorded value stands for the cell of its grid, so a row is scored at a point of its cell that its own contents
    decide: the same row always gets the same score, and the mean over rows estimates the mean over the cells.

    Args:
        flow: The flow or the ensemble in data units, or an autoencoder, whose log-densities are lower bounds; kept in
            float64, because a score is reported and not differentiated.
        schema: The columns.
        cells: Width of each column's cell in data units ``(D,)``, 0 for columns that are scored as they are.
    """

    def __init__(self, flow: Model, schema: Schema, cells: Sequence[float]) -> None:
        self.flow = flow.double().eval()
        self.schema = schema
        self.dequantizer = Dequantizer(np.asarray(cells, dtype=np.float64))

    def log_prob(
        self, rows: Array, context: Array | None = None, *, draws: int = 1, batch_size: int = BATCH_SIZE
    ) -> Array:
        """Log-density of rows in nats.

        Args:
            rows: Rows ``(n, D)`` as recorded.
            context: Context rows ``(n, C)``, for a conditional density.
            draws: Points of each row's cell to average the density over; more are tighter, at ``draws`` times the
                cost. One without cells.
            batch_size: Rows a pass.

        Returns:
            ``(n,)`` in float64.
        """
        if draws < 1:
            raise ValueError(f"log_prob: expected draws of at least 1; got {draws}")
        if not self.dequantizer.steps.any():
            draws = 1
        scores = np.stack(
            [
                log_prob(self.flow, self.dequantizer.fixed(rows, draw), context, batch_size=batch_size).numpy()
                for draw in range(draws)
            ]
        )
        if draws == 1:
            only: Array = scores[0]
            return only
        mean: Array = np.logaddexp.reduce(scores, axis=0) - np.log(draws)
        return mean

    def sample(self, n: int, context: Array | None = None, *, seed: int = 0) -> Array:
        """Draw rows ``(n, D)``, not yet rounded to the grids of the columns; the same seed draws the same rows."""
        return draw_samples(self.flow, n, context, seed=seed)

    def save(self, folder: str | Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write the density into a folder that ``load`` reads; weights are stored in float32."""
        # The weights were trained in float32: writing them so loses nothing.
        self.flow.float()
        try:
            about = {"schema": self.schema.to_dict(), "cells": self.dequantizer.steps.tolist()}
            save(self.flow, folder, extra=(extra or {}) | about)
        finally:
            self.flow.double()

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> "FittedDensity":
        """Read a density that ``save`` wrote.

        Raises:
            ModelFileError: If the folder is missing, damaged, or of another format.
        """
        flow = cast(Model, load_model(folder, Flow, Mixture, Autoencoder, device=device))
        extra = read_extra(folder)
        try:
            return cls(flow, Schema.from_dict(extra["schema"]), extra["cells"])
        except (KeyError, TypeError, DataError) as error:
            raise ModelFileError(
                f"{folder}: a flow without the columns it stands for; got no schema and cells"
            ) from error
