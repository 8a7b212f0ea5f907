"""A density fitted to a table: the model, the columns, and the bin widths of dequantized columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from pushforward.common.text import shorten
from pushforward.datasets import Dequantizer, Schema
from pushforward.datasets.tables.frames import context_rows, feature_rows
from pushforward.evaluate.likelihood import BATCH_SIZE, Array, UndefinedDensityError, check_defined, log_prob
from pushforward.evaluate.sampling import draw_samples, sample_batches
from pushforward.flows import Autoencoder, Flow, Mixture, Model, ModelFileError, load_model, read_extra, save
from pushforward.flows.checks import ANY_CONTEXT


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
        self,
        rows: Any,
        context: Any = None,
        *,
        draws: int = 1,
        batch_size: int = BATCH_SIZE,
        first_row: int = 0,
    ) -> Array:
        """Compute log-densities of rows in nats.

        Args:
            rows: Rows ``(n, D)`` as recorded: an array with the columns of the schema, or a pandas, polars or Arrow
                table or structured array, whose columns are found by name, in any order.
            context: Context rows ``(n, C)``, for a conditional density; by default the columns of such a table.
            draws: Number of places in each row's bins over which the density is averaged; more reduce the noise, at
                ``draws`` times the cost. Always 1 without dequantized columns.
            batch_size: Rows a batch.
            first_row: Number of rows of the table before these, for the error message.

        Returns:
            ``(n,)`` in float64.

        Raises:
            UndefinedDensityError: If a row of finite values has no log-density.
            DataError: If a table lacks columns, or has cells that are not numbers.
        """
        if draws < 1:
            raise ValueError(f"log_prob: expected draws of at least 1; got {draws}")
        context = context_rows(rows, context, self.schema)
        rows = feature_rows(rows, self.schema)
        if not self.dequantizer.bin_widths.any():
            draws = 1
        log_probs = np.stack(
            [
                log_prob(self.flow, self.dequantizer.fixed(rows, draw), context, batch_size=batch_size).numpy()
                for draw in range(draws)
            ]
        )
        mean: Array = log_probs[0] if draws == 1 else np.logaddexp.reduce(log_probs, axis=0) - np.log(draws)
        check_defined(mean, rows, context, first_row + np.arange(len(mean)))
        return mean

    def sample(self, n: int, context: Any = None, *, seed: int = 0) -> Array:
        """Draw rows ``(n, D)``, not yet rounded to the resolution of the columns; equal seeds draw equal rows.

        Raises:
            UndefinedDensityError: If a sample is not a number.
        """
        given = context_rows(None, context, self.schema)
        return _numbers(draw_samples(self.flow, n, given, seed=seed))

    def sample_parts(
        self, n: int, context: Array | None = None, *, seed: int = 0
    ) -> Iterator[tuple[Array, Array | None]]:
        """Draw the rows of :meth:`sample` part by part, with one row of context ``(1, C)`` for all; constant memory.

        Yields:
            Rows ``(k, D)`` and, with context, its repeated row ``(k, C)``.
        """
        for rows in sample_batches(self.flow, n, context, seed=seed):
            yield _numbers(rows), None if context is None else np.repeat(context, len(rows), axis=0)

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
            schema = Schema.from_dict(extra["schema"])
            widths = np.asarray(extra["bin_widths"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                f"{folder}: expected a model with a schema and bin widths; got a model without them"
            ) from error
        if flow.features != len(schema.names) or flow.context not in (0, ANY_CONTEXT, len(schema.context_names)):
            raise ModelFileError(
                f"{folder}: expected a schema of {flow.features} columns, given {max(0, flow.context)}; "
                f"got {len(schema.names)}, given {len(schema.context_names)}"
            )
        if widths.shape != (flow.features,) or not bool((np.isfinite(widths) & (widths >= 0)).all()):
            raise ModelFileError(
                f"{folder}: expected {flow.features} bin widths of at least 0; got {shorten(str(widths.tolist()), 60)}"
            )
        return cls(flow, schema, widths.tolist())


def _numbers(samples: Array) -> Array:
    """Return samples ``(n, D)``, or raise an error if some are NaN."""
    if np.isnan(samples).any():
        raise UndefinedDensityError(
            f"{int(np.isnan(samples).any(axis=1).sum())} of {len(samples)} samples are not numbers: "
            "the fit of the model diverged; fit again with a lower train.learning_rate"
        )
    return samples
