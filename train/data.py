"""Prepare a data set for training: load, split, dequantize, standardise."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pushforward.common.errors import ConfigError, DataError, TableError
from pushforward.common.text import leave_out, listed
from pushforward.datasets import Dataset, Dequantizer, Splits, load as load_dataset, split
from pushforward.datasets.tables.checks.repeated_rows import Repeats, find_repeats
from pushforward.datasets.tables.numbers.cells import RESCALE, Obstacle, narrow_spread
from pushforward.datasets.tables.obstacles import GIVEN, report
from pushforward.datasets.tables.weights import scale_weights
from pushforward.flows import Bijection, Chain, Flow, LogTails, Mixture, Model, Standardize
from pushforward.flows.embedding import ScaledEmbedding
from pushforward.train.objectives.likelihood import RowTensors
from pushforward.train.options import DataOptions
from pushforward.train.scaling import in_one, scale_columns

Array = npt.NDArray[np.float64]

# At most so many validation rows are read during training: their standard error is small enough for early stopping.
MAX_VALIDATION_ROWS = 10_000

LARGEST = 1e30
"""Standardised values are clipped here for training, before their squares overflow float32."""


@dataclass(frozen=True)
class SplitPart:
    """One part of a split in data units: features ``(n, D)`` with noise added, context ``(n, C)``, weights ``(n,)``.

    Context and weights are None where there are none.
    """

    rows: Array
    context: Array | None
    weights: Array | None = None


@dataclass(frozen=True)
class Prepared:
    """A data set ready for fitting.

    Attributes:
        dataset: The data set.
        splits: Row numbers of the three parts.
        bin_widths: Bin width of each column ``(D,)`` in data units, 0 where values are taken as they are.
        train: Training rows, noise added once, for baselines and reports.
        validation: Validation rows, likewise.
        test: Test rows, likewise.
        recorded: Training rows as recorded ``(n, D)``; the loop adds new noise in every step.
        standardize: Standardises rows by mean and standard deviation of the training rows, see ``scale_columns``.
        tails: Maps heavy tails of standardised rows; the first layer of every flow. None without such columns.
        standardize_context: The same as ``standardize`` for the context; None without context.
        context_tails: The same as ``tails`` for the context.
        repeats: Which held-out rows are copies of training rows; None if there are hardly any.
    """

    dataset: Dataset
    splits: Splits
    bin_widths: Array
    train: SplitPart
    validation: SplitPart
    test: SplitPart
    recorded: Array
    standardize: Standardize
    tails: LogTails | None
    standardize_context: Standardize | None
    context_tails: LogTails | None
    repeats: Repeats | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to show to the user: those of the data set, and how its columns are prepared."""
        return tuple(note for note in (*self.dataset.notes, self.ties, self.heavy_tails) if note)

    @property
    def heavy_tails(self) -> str:
        """One line about the columns with heavy tails; empty if there are none."""
        schema = self.dataset.schema
        names = [
            name
            for known, tails in ((schema.names, self.tails), (schema.context_names, self.context_tails))
            if tails is not None
            for name, is_mapped in zip(known, tails.mapped, strict=True)
            if is_mapped
        ]
        if not names:
            return ""
        return f"columns scaled without their values far outside, with tails mapped by a logarithm: {listed(names)}"

    @property
    def ties(self) -> str:
        """One line about the columns with repeated values; empty if there are none."""
        tied = [column for column in self.dataset.schema.columns if column.tied]
        if not tied:
            return ""
        names = listed([column.name + ("" if column.step is None else f" (step {column.step:g})") for column in tied])
        if not self.bin_widths.any():
            return f"columns with repeated values, not dequantized: {names}; their likelihoods are overstated"
        return f"columns with repeated values, dequantized by uniform noise of one bin width: {names}"

    def schema(self) -> dict[str, Any]:
        """JSON values that describe the rows: their source, the sizes of the parts, the columns."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "dataset": self.dataset.name,
            "source": self.dataset.source,
            "sha256": self.dataset.sha256,
            "rows": {name: len(part.rows) for name, part in parts.items()},
            "notes": list(self.notes),
            "bin_widths": self.bin_widths.tolist(),
            **self.dataset.schema.to_dict(),
        }

    def training_rows(self, device: torch.device) -> RowTensors:
        """The training rows, standardised, with their bin widths."""
        scale = np.asarray(self.standardize.config()["scale"])
        widths = None
        if self.bin_widths.any():
            widths = torch.tensor(self.bin_widths / scale, dtype=torch.float32, device=device)
        context, weights = self._context(self.train.context, device), _weights(self.train.weights, device)
        return RowTensors(self._standardized(self.recorded, device), context, widths, weights)

    def validation_rows(self, device: torch.device) -> RowTensors:
        """The validation rows, standardised, with noise added; a random part of them if there are many.

        The part depends on the number of rows alone, so that a resumed fit and all compared flows use the same rows.
        The first rows will not do: a part of a split keeps the order of the file, which may be that of time.
        """
        rows, context, weights = self.validation.rows, self.validation.context, self.validation.weights
        numbers = self.dataset.in_file(self.splits.validation)
        n = len(rows)
        if n > MAX_VALIDATION_ROWS:
            chosen = np.sort(np.random.default_rng(n).choice(n, MAX_VALIDATION_ROWS, replace=False))
            rows, numbers = rows[chosen], numbers[chosen]
            context, weights = (None if part is None else part[chosen] for part in (context, weights))
        standardized, context_rows = self._standardized(rows, device), self._context(context, device)
        return RowTensors(standardized, context_rows, weights=_weights(weights, device), numbers=numbers)

    @property
    def scale_context(self) -> Bijection | None:
        """The map of the context before networks see it; None without context."""
        return None if self.standardize_context is None else in_one(self.standardize_context, self.context_tails)

    def with_tails(self, model: Model) -> Model:
        """Let a model of standardised rows begin with the map of heavy tails."""
        return model if self.tails is None else _prepend(self.tails, model)

    def map_tails(self, x: torch.Tensor) -> torch.Tensor:
        """Map the heavy tails of standardised rows, as the first layer of every model does."""
        return x if self.tails is None else self.tails(x)[0]

    def in_data_units(self, model: Model) -> Model:
        """Include the standardisation: the density of rows, given context, in the units of the table."""
        return _prepend(self.standardize, model, self.scale_context)

    def _standardized(self, rows: Array, device: torch.device) -> torch.Tensor:
        # Rounded to float32 only after standardising: large offsets would lose their digits.
        standardized: torch.Tensor = self.standardize(torch.from_numpy(rows))[0]
        return standardized.clamp(-LARGEST, LARGEST).float().to(device)

    def _context(self, context: Array | None, device: torch.device) -> torch.Tensor | None:
        scale = self.scale_context
        if context is None or scale is None:
            return None
        standardized: torch.Tensor = scale(torch.from_numpy(context))[0]
        return standardized.float().to(device)


def prepare(dataset: Dataset, options: DataOptions) -> Prepared:
    """Split a data set, decide which columns are dequantized, and standardise by the training part.

    A data set that comes with a split keeps it; seed and fractions then have no effect. The data set returned has an
    additional note if held-out rows are copies of training rows.

    Raises:
        DataError: If a column is constant in the training part, or a part would be empty.
    """
    splits = dataset.splits
    if splits is None:
        splits = split(len(dataset.rows), options.seed, options.validation_fraction, options.test_fraction)
    if len(splits.train) < 2:
        raise DataError(
            f"{dataset.name}: {len(dataset.rows)} rows leave {len(splits.train)} to train on; at least 2 are needed: "
            f"give more rows, or hold out fewer"
        )
    repeats = find_repeats(dataset.rows, dataset.context, splits)
    if repeats:
        dataset = replace(dataset, notes=(*dataset.notes, f"{dataset.name}: {repeats.note}"))
    dequantizer = Dequantizer.of(dataset.schema)
    if not options.dequantize:
        dequantizer = Dequantizer(np.zeros(dataset.rows.shape[1]))
    has_context = dataset.context.shape[1] > 0

    def part(numbers: npt.NDArray[np.int64], draw: int = 0) -> SplitPart:
        context = dataset.context[numbers] if has_context else None
        weights = None if dataset.weights is None else dataset.weights[numbers]
        return SplitPart(dequantizer.fixed(dataset.rows[numbers], draw), context, weights)

    # Not the noise of the scored rows: a row that is in both parts must not get the same noise.
    train = part(splits.train, draw=1)
    _refuse_constants(dataset, train)
    validation = part(splits.validation)
    for name, weights in (("training", train.weights), ("validation", validation.weights)):
        if weights is not None and not weights.any():
            raise DataError(f"data.weight: all {name} rows have weight 0; give more rows, or try another seed")
    standardize, tails = scale_columns(train.rows, validation.rows)
    standardize_context, context_tails = None, None
    if train.context is not None and validation.context is not None:
        standardize_context, context_tails = scale_columns(train.context, validation.context)
    return Prepared(
        dataset=dataset,
        splits=splits,
        bin_widths=dequantizer.bin_widths,
        train=train,
        validation=validation,
        test=part(splits.test),
        recorded=dataset.rows[splits.train],
        standardize=standardize,
        tails=tails,
        standardize_context=standardize_context,
        context_tails=context_tails,
        repeats=repeats,
    )


def _refuse_constants(dataset: Dataset, train: SplitPart) -> None:
    """Raise if columns take one value in all training rows, or differ by too little there."""
    features, context = dataset.schema.names, dataset.schema.context_names
    names = (*features, *context)
    matrix = train.rows if train.context is None else np.hstack((train.rows, train.context))
    constant = f"takes one value in all {len(matrix):,} training rows, so that it has no density"
    obstacles = []
    for name, values in zip(names, matrix.T, strict=True):
        if what := narrow_spread(values) if np.ptp(values) > 0 else constant:
            obstacles.append(Obstacle(name, what, RESCALE))
    if not obstacles:
        return
    advice = "try another seed of the split" if dataset.splits is None else "try another data.fold"
    if any(obstacle.what != constant for obstacle in obstacles):
        advice = f"rescale the columns that vary, or {advice}"
    bad = [obstacle.column for obstacle in obstacles]
    can_go = not set(bad) & set(context) and len(bad) < len(features)
    if can_go:
        advice = f"leave {'it' if len(bad) == 1 else 'them'} out with {leave_out(*bad)}, or {advice}"
    where, looked_at = dataset.name, len(names)
    if dataset.given_apart and set(bad) <= set(context):
        where, looked_at = GIVEN, len(context)
    raise TableError(report(where, obstacles, looked_at), advice, bad if can_go else ())


def _weights(weights: Array | None, device: torch.device) -> torch.Tensor | None:
    return None if weights is None else torch.from_numpy(scale_weights(weights)).float().to(device)


def _prepend(bijection: Bijection, model: Model, embedding: Bijection | None = None) -> Model:
    """Apply a bijection before a flow, or before each member of a mixture, and an embedding to its context."""
    if isinstance(model, Mixture):
        return Mixture([_before(bijection, member, embedding) for member in model.members], model.weights)
    return _before(bijection, model, embedding)


def _before(bijection: Bijection, flow: Flow, embedding: Bijection | None) -> Flow:
    members = flow.bijection.bijections if isinstance(flow.bijection, Chain) else [flow.bijection]
    chain = Chain([bijection, *members], features=flow.features, context=flow.bijection.context)
    if embedding is not None and flow.embedding is not None:
        return Flow(flow.base, chain, embedding=ScaledEmbedding(embedding, flow.embedding))
    return Flow(flow.base, chain, embedding=embedding if embedding is not None and flow.context else flow.embedding)


def load_data(data: DataOptions, *, source: Any = None, given: Any = None, weight: Any = None) -> Dataset:
    """Load the data set that options name, or rows in memory.

    Args:
        data: The options.
        source: Rows in memory, or a path; by default the source of the options.
        given: Context rows in memory.
        weight: Weights in memory.

    Raises:
        DataError: If there is no such data set, or it cannot be used.
        ConfigError: If fractions are given for a data set that comes with a split, or context or weights in memory
            beside columns of them.
    """
    for what, value, names in (("given", given, data.given), ("weight", weight, data.weight)):
        if value is not None and names:
            raise ConfigError(f"data.{what}: set twice, by names of columns and in memory; leave one out")
    dataset = load_dataset(
        data.source if source is None else source,
        rows=data.rows,
        seed=data.seed,
        columns=data.columns,
        drop=data.drop,
        context=data.given,
        response=data.response,
        given=given,
        weight=data.weight if weight is None else weight,
        missing=data.missing,
        missing_values=data.missing_values,
        protocol=data.protocol,
        fold=data.fold,
    )
    if dataset.splits is not None:
        for key in ("validation_fraction", "test_fraction"):
            if getattr(data, key) != getattr(DataOptions, key):
                raise ConfigError(f"data.{key}: has no effect, as {dataset.name} comes in fixed parts; leave it out")
    return dataset
