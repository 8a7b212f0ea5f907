"""A density fitted to a table: the model, the columns, and the bin widths of dequantized columns."""

import copy
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pushforward.common.errors import DataError
from pushforward.common.files import json_safe
from pushforward.common.text import listed, shorten
from pushforward.common.whole_number import MAX_SEED, whole_number
from pushforward.datasets import Dequantizer, Schema
from pushforward.datasets.tables.memory.frame_kind import FrameKind
from pushforward.datasets.tables.memory.frames import context_rows, feature_rows
from pushforward.datasets.tables.write import RowTables
from pushforward.evaluate.likelihood import (
    BATCH_SIZE,
    Array,
    UndefinedDensityError,
    check_defined,
    log_prob,
    why_undefined,
    with_error,
)
from pushforward.evaluate.sampling import context_of, draw_samples, sample_batches
from pushforward.flows import Autoencoder, Flow, Mixture, Model, ModelFileError, load_model, read_extra, save
from pushforward.flows.checks import ANY_CONTEXT
from pushforward.flows.torch_defaults import usual_defaults


class FittedDensity:
    """Log-densities and samples of a table's rows, in the units of the table.

    A recorded value of a dequantized column stands for its bin. A row is scored at a pseudo-random place in its bins
    that depends only on the row: the same row always gets the same log-density, and the mean over rows estimates the
    mean over the bins.

    Args:
        model: A flow or a mixture of flows in data units, or an autoencoder, whose log-densities are lower bounds; kept
            in float64, because log-densities are reported and not differentiated.
        schema: The columns.
        bin_widths: Bin width of each column in data units ``(D,)``, 0 for columns that are scored as they are.
        kind: The kind of object that samples are returned as.
        given_apart: Whether samples are returned without the columns that they are conditioned on.

    Attributes:
        model: The model, in float64.
        results: The final numbers of its fit, such as ``test_nll``; empty if they are not known. A folder that ``save``
            wrote keeps them.
    """

    def __init__(
        self,
        model: Model,
        schema: Schema,
        bin_widths: Sequence[float],
        kind: FrameKind | None = None,
        *,
        given_apart: bool = False,
    ) -> None:
        self.model = model.double().eval()
        self.schema = schema
        self.dequantizer = Dequantizer(np.asarray(bin_widths, dtype=np.float64))
        self.kind, self.given_apart = FrameKind() if kind is None else kind, given_apart
        self.results: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        """Say what it is a density of, and how good it is, as far as that is known."""
        given = self.schema.context_names
        of = f"{listed(self.schema.names, 4)} given {listed(given, 4)}" if given else listed(self.schema.names, 4)
        nll, se = self.results.get("test_nll"), self.results.get("test_nll_se")
        quality = "" if nll is None or se is None else f"; test NLL {with_error(nll, se, 3)} nats"
        return f"<FittedDensity: {self.results.get('flow', 'model')} of {of}{quality}>"

    @usual_defaults()
    def log_prob(
        self,
        rows: Any,
        given: Any = None,
        *,
        draws: int = 1,
        batch_size: int = BATCH_SIZE,
        first_row: int = 0,
    ) -> Any:
        """Compute log-densities of rows in nats.

        Args:
            rows: Rows ``(n, D)`` as recorded: an array, a tensor or a list with the columns of the schema in order; or
                a pandas, polars or Arrow table or a dict of columns, which are found by name, in any order.
            given: Context rows ``(n, C)`` or ``(1, C)``, for a conditional density; by default the columns of such a
                table.
            draws: Number of places in each row's bins over which the density is averaged; more reduce the noise, at
                ``draws`` times the cost. Always 1 without dequantized columns.
            batch_size: Rows a batch.
            first_row: Number of rows of the table before these, for the error message.

        Returns:
            ``(n,)`` in float64; a tensor if the rows are one.

        Raises:
            UndefinedDensityError: If a row of finite values has no log-density.
            DataError: If rows or context lack columns, or have cells that are not finite numbers.
        """
        draws, batch_size = whole_number("draws", draws, 1), whole_number("batch_size", batch_size, 1)
        first_row = whole_number("first_row", first_row, 0)
        is_tensor = isinstance(rows, torch.Tensor)
        context = self._context(rows, given)
        rows = feature_rows(rows, self.schema, alone=given is not None)
        if not self.dequantizer.bin_widths.any():
            draws = 1
        log_probs = np.stack(
            [
                log_prob(self.model, self.dequantizer.fixed(rows, draw), context, batch_size=batch_size).numpy()
                for draw in range(draws)
            ]
        )
        mean: Array = log_probs[0] if draws == 1 else np.logaddexp.reduce(log_probs, axis=0) - np.log(draws)
        check_defined(mean, rows, context, first_row + np.arange(len(mean)))
        return torch.from_numpy(mean) if is_tensor else mean

    def sample(self, n: int = 1, given: Any = None, *, seed: int | None = None) -> Any:
        """Draw rows with the types, the resolution and the range of the recorded ones.

        Args:
            n: Number of rows.
            given: What they are conditioned on, for a conditional density: a row for all, such as ``{"quality": 7}``,
                or ``n`` rows.
            seed: Equal seeds draw equal rows; by default every call draws others.

        Returns:
            ``n`` rows of the kind that the density was fitted to: a pandas, polars or Arrow table, an array or a
            tensor; an Arrow table for files.

        Raises:
            DataError: If ``given`` lacks a column, or is not one row or ``n`` rows.
            UndefinedDensityError: If a sample is not a number.
        """
        n = whole_number("n", n, 1)
        seed = secrets.randbits(62) if seed is None else whole_number("seed", seed, 0, MAX_SEED)
        if isinstance(given, Mapping):
            given = {name: np.atleast_1d(value) for name, value in given.items()}
        context = context_rows(None, given, self.schema)
        if context is not None and len(context) not in (1, n):
            raise DataError(f"given: expected 1 row or {n}; got {len(context)}")
        rows = self.draw(n, context, seed=seed)
        shown = None if context is None else np.broadcast_to(context, (n, context.shape[1]))
        table = RowTables(self.schema).table(rows, shown)
        return self.kind.build(table.select(self.schema.names) if self.given_apart else table)

    @usual_defaults()
    def draw(self, n: int, context: Any = None, *, seed: int = 0) -> Array:
        """Draw rows ``(n, D)``, not yet rounded to the resolution of the columns; equal seeds draw equal rows.

        Raises:
            UndefinedDensityError: If a sample is not a number.
            DataError: If there is no context and the density is conditional, the context cannot be used, or the rows
                do not fit in memory.
        """
        given = self._context(None, context)
        return _numbers(draw_samples(self.model, n, given, seed=seed), given)

    def sample_parts(
        self, n: int, context: Array | None = None, *, seed: int = 0
    ) -> Iterator[tuple[Array, Array | None]]:
        """Draw the rows of :meth:`draw` part by part, in constant memory.

        Args:
            n: Number of rows.
            context: Context rows ``(m, C)``, where ``m`` divides ``n``: each is for the next ``n / m`` rows.
            seed: Equal seeds draw equal rows.

        Yields:
            Rows ``(k, D)`` and their context ``(k, C)``, None without context.
        """
        start = 0
        for rows in sample_batches(self.model, n, context, seed=seed):
            shown = None if context is None else context_of(context, n, start, len(rows))
            yield _numbers(rows, shown), shown
            start += len(rows)

    def _context(self, rows: Any, context: Any) -> Array | None:
        if context is None and not self.model.context:
            return None  # also of a table with context, which a model may ignore
        given = context_rows(rows, context, self.schema)
        return given if self.model.context else None

    @usual_defaults()
    def save(self, folder: str | Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write the density to a folder for ``load``; weights are stored in float32.

        Raises:
            ValueError: If the model holds a module that has no registered name.
            OSError: If the folder cannot be written.
        """
        description = {
            "schema": self.schema.to_dict(),
            "bin_widths": self.dequantizer.bin_widths.tolist(),
            "kind": self.kind.to_dict(),
            "given_apart": self.given_apart,
            "results": json_safe(dict(self.results)),
        }
        # The weights were trained in float32: this loses nothing. A copy, as others may use the model at this moment.
        save(copy.deepcopy(self.model).float(), folder, extra=(extra or {}) | description)

    @classmethod
    @usual_defaults()
    def load(cls, folder: str | Path, *, device: str = "cpu") -> "FittedDensity":
        """Read a density that ``save`` wrote.

        Raises:
            ModelFileError: If the folder is missing, damaged, or of another format.
        """
        model = cast(Model, load_model(folder, Flow, Mixture, Autoencoder, device=device))
        extra = read_extra(folder)
        try:
            schema = Schema.from_dict(extra["schema"])
            kind, given_apart = FrameKind.from_dict(extra["kind"]), bool(extra["given_apart"])
            results = dict(extra["results"])
            widths = np.asarray(extra["bin_widths"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                f"{folder}: expected a model with a schema and bin widths; got a model without them"
            ) from error
        if model.features != len(schema.names) or model.context not in (0, ANY_CONTEXT, len(schema.context_names)):
            raise ModelFileError(
                f"{folder}: expected a schema of {model.features} columns, given {max(0, model.context)}; "
                f"got {len(schema.names)}, given {len(schema.context_names)}"
            )
        if widths.shape != (model.features,) or not bool((np.isfinite(widths) & (widths >= 0)).all()):
            raise ModelFileError(
                f"{folder}: expected {model.features} bin widths of at least 0; got {shorten(str(widths.tolist()), 60)}"
            )
        density = cls(model, schema, widths.tolist(), kind, given_apart=given_apart)
        density.results = results
        return density


def _numbers(samples: Array, context: Array | None) -> Array:
    """Return samples ``(n, D)``, or raise an error if some are NaN."""
    if np.isnan(samples).any():
        raise UndefinedDensityError(
            f"{int(np.isnan(samples).any(axis=1).sum())} of {len(samples)} samples are not numbers: "
            f"{why_undefined(has_context=context is not None)}"
        )
    return samples
