"""A density fitted to a table: the model, the columns, and the bin widths of dequantized columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from pushforward.common.errors import DataError
from pushforward.datasets import Dequantizer, Schema
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, log_prob
from pushforward.evaluate.sampling import draw_samples
from pushforward.flows import Autoencoder, Flow, Mixture, Model, ModelFileError, load_model, read_extra, save


class FittedDensity:
    """Log-densities and samples of a table's rows, in the units of the table.

    A recorded value of a dequantized column stands for its bin. A row is scored at a pseudo-random place in its bins
    that depends only on the row: the same row always gets the same log-density, and the mean over rows estimates the
    mean over the bins.

    Args:
        flow: A flow or a mixture of flows in data units, or an autoencoder, whose log-densities are lower bounds; kept
            in float64, because log-densities are reported and not differentiated.
        schema: The columns.
        bin_widths: Bin width of each column in data units ``(D,)``, 0 for columns that are scored as they are.
    """

    def __init__(self, flow: Model, schema: Schema, bin_widths: Sequence[float]) -> None:
        self.flow = flow.double().eval()
        self.schema = schema
        self.dequantizer = Dequantizer(np.asarray(bin_widths, dtype=np.float64))

    def log_prob(
        self, rows: Array, context: Array | None = None, *, draws: int = 1, batch_size: int = BATCH_SIZE
    ) -> Array:
        """Compute log-densities of rows in nats.

        Args:
            rows: Rows ``(n, D)`` as recorded.
            context: Context rows ``(n, C)``, for a conditional density.
            draws: Number of places in each row's bins over which the density is averaged; more reduce the noise, at
                ``draws`` times the cost. Always 1 without dequantized columns.
            batch_size: Rows a batch.

        Returns:
            ``(n,)`` in float64.
        """
        if draws < 1:
            raise ValueError(f"log_prob: expected draws of at least 1; got {draws}")
        if not self.dequantizer.bin_widths.any():
            draws = 1
        log_probs = np.stack(
            [
                log_prob(self.flow, self.dequantizer.fixed(rows, draw), context, batch_size=batch_size).numpy()
                for draw in range(draws)
            ]
        )
        if draws == 1:
            single: Array = log_probs[0]
            return single
        mean: Array = np.logaddexp.reduce(log_probs, axis=0) - np.log(draws)
        return mean

    def sample(self, n: int, context: Array | None = None, *, seed: int = 0) -> Array:
        """Draw rows ``(n, D)``, not yet rounded to the resolution of the columns; equal seeds draw equal rows."""
        return draw_samples(self.flow, n, context, seed=seed)

    def save(self, folder: str | Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write the density to a folder for ``load``; weights are stored in float32."""
        # The weights were trained in float32: this loses nothing.
        self.flow.float()
        try:
            description = {"schema": self.schema.to_dict(), "bin_widths": self.dequantizer.bin_widths.tolist()}
            save(self.flow, folder, extra=(extra or {}) | description)
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
            return cls(flow, Schema.from_dict(extra["schema"]), extra["bin_widths"])
        except (KeyError, TypeError, DataError) as error:
            raise ModelFileError(
                f"{folder}: expected a model with a schema and bin widths; got a model without them"
            ) from error
