"""Prepare a data set for training: load, split, dequantize, standardise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pushforward.common.errors import ConfigError, DataError
from pushforward.common.text import leave_out
from pushforward.config.schema import Config, DataConfig
from pushforward.datasets import Dataset, Dequantizer, Splits, load as load_dataset, split
from pushforward.datasets.tables.repeated_rows import Repeats, find_repeats
from pushforward.flows import Chain, Flow, Mixture, Model, Standardize
from pushforward.train.objectives.likelihood import RowTensors

Array = npt.NDArray[np.float64]

# At most so many validation rows are read during training: their standard error is small enough for early stopping.
MAX_VALIDATION_ROWS = 10_000


@dataclass(frozen=True)
class SplitPart:
    """One part of a split in data units: features ``(n, D)`` with noise added, context ``(n, C)`` or None."""

    rows: Array
    context: Array | None


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
        standardize: Standardises rows by mean and standard deviation of the training rows.
        standardize_context: The same for the context; None without context.
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
    standardize_context: Standardize | None
    repeats: Repeats | None = None

    @property
    def ties(self) -> str:
        """One line about the columns with repeated values; empty if there are none."""
        tied = [column for column in self.dataset.schema.columns if column.tied]
        if not tied:
            return ""
        shown = [column.name + ("" if column.step is None else f" (step {column.step:g})") for column in tied[:6]]
        names = ", ".join(shown) + (f" and {len(tied) - len(shown)} more" if len(tied) > len(shown) else "")
        if not self.bin_widths.any():
            return f"columns with repeated values, not dequantized: {names}; their likelihoods are overstated"
        return f"columns with repeated values, dequantized by uniform noise of one bin width: {names}"

    def training_rows(self, device: torch.device) -> RowTensors:
        """The training rows, standardised, with their bin widths."""
        scale = np.asarray(self.standardize.config()["scale"])
        widths = None
        if self.bin_widths.any():
            widths = torch.tensor(self.bin_widths / scale, dtype=torch.float32, device=device)
        return RowTensors(self._standardized(self.recorded, device), self._context(self.train.context, device), widths)

    def validation_rows(self, device: torch.device) -> RowTensors:
        """The validation rows, standardised, with noise added; a random part of them if there are many.

        The part depends on the number of rows alone, so that a resumed fit and all compared flows use the same rows.
        The first rows will not do: a part of a split keeps the order of the file, which may be that of time.
        """
        rows, context = self.validation.rows, self.validation.context
        n = len(rows)
        if n > MAX_VALIDATION_ROWS:
            chosen = np.sort(np.random.default_rng(n).choice(n, MAX_VALIDATION_ROWS, replace=False))
            rows, context = rows[chosen], None if context is None else context[chosen]
        return RowTensors(self._standardized(rows, device), self._context(context, device))

    def in_data_units(self, model: Model) -> Model:
        """Include the standardisation: the density of rows, given context, in the units of the table."""
        if isinstance(model, Mixture):
            return Mixture([self._in_data_units(member) for member in model.members], model.weights)
        return self._in_data_units(model)

    def _in_data_units(self, core: Flow) -> Flow:
        members = core.bijection.bijections if isinstance(core.bijection, Chain) else [core.bijection]
        chain = Chain([self.standardize, *members], features=core.features, context=core.bijection.context)
        return Flow(core.base, chain, embedding=self.standardize_context if core.context else None)

    def _standardized(self, rows: Array, device: torch.device) -> torch.Tensor:
        # Rounded to float32 only after standardising: large offsets would lose their digits.
        standardized: torch.Tensor = self.standardize(torch.from_numpy(rows))[0]
        return standardized.float().to(device)

    def _context(self, context: Array | None, device: torch.device) -> torch.Tensor | None:
        if context is None or self.standardize_context is None:
            return None
        standardized: torch.Tensor = self.standardize_context(torch.from_numpy(context))[0]
        return standardized.float().to(device)


def prepare(dataset: Dataset, config: DataConfig, seed: int) -> Prepared:
    """Split a data set, decide which columns are dequantized, and standardise by the training part.

    A data set that comes with a split keeps it; seed and fractions then have no effect. The data set returned has an
    additional note if held-out rows are copies of training rows.

    Raises:
        DataError: If a column is constant in the training part, or a part would be empty.
    """
    splits = dataset.splits
    if splits is None:
        splits = split(len(dataset.rows), seed, config.validation_fraction, config.test_fraction)
    if len(splits.train) < 2:
        raise DataError(
            f"{dataset.name}: {len(dataset.rows)} rows leave {len(splits.train)} to train on; at least 2 are needed: "
            f"give more rows, or hold out fewer"
        )
    repeats = find_repeats(dataset.rows, dataset.context, splits)
    if repeats:
        dataset = replace(dataset, notes=(*dataset.notes, f"{dataset.name}: {repeats.note}"))
    dequantizer = Dequantizer.of(dataset.schema)
    if config.dequantize == "off":
        dequantizer = Dequantizer(np.zeros(dataset.rows.shape[1]))
    has_context = dataset.context.shape[1] > 0

    def part(numbers: npt.NDArray[np.int64], draw: int = 0) -> SplitPart:
        context = dataset.context[numbers] if has_context else None
        return SplitPart(dequantizer.fixed(dataset.rows[numbers], draw), context)

    # Not the noise of the scored rows: a row that is in both parts must not get the same noise.
    train = part(splits.train, draw=1)
    standardize_context = None
    if train.context is not None:
        standardize_context = _standardize(train.context, dataset.schema.context_names)
    return Prepared(
        dataset=dataset,
        splits=splits,
        bin_widths=dequantizer.bin_widths,
        train=train,
        validation=part(splits.validation),
        test=part(splits.test),
        recorded=dataset.rows[splits.train],
        standardize=_standardize(train.rows, dataset.schema.names),
        standardize_context=standardize_context,
        repeats=repeats,
    )


def _standardize(rows: Array, names: Sequence[str]) -> Standardize:
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    for name, value in zip(names, scale, strict=True):
        if not value > 0:
            raise DataError(
                f"column '{name}' takes one value in all {len(rows)} training rows, so that it has no density; "
                f"leave it out with {leave_out(name)}, or try another seed of the split"
            )
    return Standardize(mean.tolist(), scale.tolist())


def load_data(config: Config) -> Dataset:
    """Load the data set that a configuration names.

    Raises:
        DataError: If there is no such data set, or it cannot be used.
        ConfigError: If fractions are given for a data set that comes with a split.
    """
    data = config.data
    dataset = load_dataset(
        data.source,
        rows=None if data.rows == "auto" else data.rows,
        seed=config.data_seed,
        columns=None if data.columns == "all" else data.columns,
        drop=data.drop,
        context=data.context,
        protocol=None if data.protocol == "none" else data.protocol,
        fold=data.fold,
    )
    if dataset.splits is not None:
        for key in ("validation_fraction", "test_fraction"):
            if getattr(data, key) != DataConfig.model_fields[key].default:
                raise ConfigError(f"data.{key}: has no effect, as {dataset.name} comes in fixed parts; leave it out")
    return dataset
