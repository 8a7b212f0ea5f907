"""From a data set to what the loop reads: load, split, dequantize, standardise."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pushforward.common.errors import ConfigError, DataError
from pushforward.common.text import leave_out
from pushforward.config.schema import Config, DataConfig
from pushforward.datasets import Dataset, Dequantizer, Splits, load as load_dataset, split
from pushforward.datasets.repeated_rows import Repeats, find_repeats
from pushforward.flows import Chain, Flow, Mixture, Model, Standardize
from pushforward.train.objectives.likelihood import Rows

Array = npt.NDArray[np.float64]

# Validation during training reads at most this many rows: their standard error is far below what a stop decides on.
MAX_VALIDATION_ROWS = 10_000


@dataclass(frozen=True)
class Part:
    """One part of the split in data units: features ``(n, D)`` as scored (noise added), context ``(n, C)`` or None."""

    rows: Array
    context: Array | None


@dataclass(frozen=True)
class Prepared:
    """A data set ready for fitting.

    Attributes:
        dataset: Where it came from.
        splits: Row numbers of the three parts.
        cells: Width of each column's cell ``(D,)`` in data units, 0 where values are taken as they are.
        train: Training rows, noise added once: what baselines and reports see.
        validation: Validation rows, likewise.
        test: Test rows, likewise.
        recorded: Training rows as recorded ``(n, D)``: the loop adds fresh noise in every step.
        standardize: Mean and standard deviation of the training rows.
        standardize_context: The same of the context, None without context.
        repeats: Which held-out rows stand among the training rows as well, None if next to none does.
    """

    dataset: Dataset
    splits: Splits
    cells: Array
    train: Part
    validation: Part
    test: Part
    recorded: Array
    standardize: Standardize
    standardize_context: Standardize | None
    repeats: Repeats | None = None

    @property
    def ties(self) -> str:
        """One line on the columns whose values repeat, empty where none does."""
        tied = [column for column in self.dataset.schema.columns if column.tied]
        if not tied:
            return ""
        shown = [column.name + ("" if column.step is None else f" (step {column.step:g})") for column in tied[:6]]
        names = ", ".join(shown) + (f" and {len(tied) - len(shown)} more" if len(tied) > len(shown) else "")
        if not self.cells.any():
            return f"columns with repeated values, taken as they are: {names}; their likelihoods are overstated"
        return f"columns with repeated values, each spread over its grid step: {names}"

    def training_points(self, device: torch.device) -> Rows:
        """The training rows, standardised, with their cells."""
        scale = np.asarray(self.standardize.config()["scale"])
        cell = torch.tensor(self.cells / scale, dtype=torch.float32, device=device) if self.cells.any() else None
        return Rows(self._standardized(self.recorded, device), self._context(self.train.context, device), cell)

    def validation_points(self, device: torch.device) -> Rows:
        """The validation rows, standardised, noise added; of many, a random part.

        Which part depends on their number alone: a fit that is resumed validates on the same rows, and so do all flows
        that are compared. The parts of a split are in the order of the file, so the first rows would be its head.
        """
        rows, context = self.validation.rows, self.validation.context
        n = len(rows)
        if n > MAX_VALIDATION_ROWS:
            chosen = np.sort(np.random.default_rng(n).choice(n, MAX_VALIDATION_ROWS, replace=False))
            rows, context = rows[chosen], None if context is None else context[chosen]
        return Rows(self._standardized(rows, device), self._context(context, device))

    def in_data_units(self, model: Model) -> Model:
        """Put standardising inside: the density whose points and context are in the units of the table."""
        if isinstance(model, Mixture):
            return Mixture([self._in_data_units(member) for member in model.members], model.weights)
        return self._in_data_units(model)

    def _in_data_units(self, core: Flow) -> Flow:
        members = core.bijection.bijections if isinstance(core.bijection, Chain) else [core.bijection]
        chain = Chain([self.standardize, *members], features=core.features, context=core.bijection.context)
        return Flow(core.base, chain, embedding=self.standardize_context if core.context else None)

    def _standardized(self, rows: Array, device: torch.device) -> torch.Tensor:
        # In float64, then rounded: large offsets would not survive the other order.
        points: torch.Tensor = self.standardize(torch.from_numpy(rows))[0]
        return points.float().to(device)

    def _context(self, context: Array | None, device: torch.device) -> torch.Tensor | None:
        if context is None or self.standardize_context is None:
            return None
        points: torch.Tensor = self.standardize_context(torch.from_numpy(context))[0]
        return points.float().to(device)


def prepare(dataset: Dataset, config: DataConfig, seed: int) -> Prepared:
    """Split a data set, decide which columns stand for cells, and measure location and scale on the training part.

    A data set that comes in parts keeps them; the seed and the fractions then have no effect. The data set returned
    has one more note where held-out rows stand among the training rows too.

    Raises:
        DataError: If a column does not vary within the training part, or a part would be empty.
    """
    splits = dataset.splits
    if splits is None:
        splits = split(len(dataset.rows), seed, config.validation_fraction, config.test_fraction)
    if len(splits.train) < 2:
        raise DataError(
            f"{dataset.name}: {len(dataset.rows)} rows leave {len(splits.train)} to train on, and a spread takes 2; "
            f"give more rows, or hold out fewer"
        )
    repeats = find_repeats(dataset, splits)
    if repeats:
        dataset = replace(dataset, notes=(*dataset.notes, f"{dataset.name}: {repeats.note}"))
    dequantizer = Dequantizer.of(dataset.schema)
    if config.dequantize == "off":
        dequantizer = Dequantizer(np.zeros(dataset.rows.shape[1]))
    has_context = dataset.context.shape[1] > 0

    def part(indices: npt.NDArray[np.int64], draw: int = 0) -> Part:
        context = dataset.context[indices] if has_context else None
        return Part(dequantizer.fixed(dataset.rows[indices], draw), context)

    # Another draw than that of the rows that are scored: a row that stands in both parts must not give itself away.
    train = part(splits.train, draw=1)
    standardize_context = None
    if train.context is not None:
        standardize_context = _standardize(train.context, dataset.schema.context_names)
    return Prepared(
        dataset=dataset,
        splits=splits,
        cells=dequantizer.steps,
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
                f"column '{name}' takes one value in all {len(rows)} training rows: it has no density there; "
                f"leave it out with {leave_out(name)}, or try another --seed"
            )
    return Standardize(mean.tolist(), scale.tolist())


def load_data(config: Config) -> Dataset:
    """Load the data set that a configuration names.

    Raises:
        DataError: If there is no such data set, or it cannot be used.
        ConfigError: If shares of the rows are given for a data set that comes in parts.
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


def anchored(data: DataConfig, dataset: Dataset) -> DataConfig:
    """The section with the whole path of a file, so that its run finds it again from any folder."""
    return data.model_copy(update={"source": str(Path(data.source).resolve())}) if dataset.is_file else data


def check_same_data(schema: Path, run: Path, dataset: Dataset) -> None:
    """Raise a ``DataError`` unless the data are those that a run recorded in its schema.

    Args:
        schema: The run's ``schema.json``.
        run: The run folder, to be named in the message.
        dataset: What was loaded now.
    """
    recorded = json.loads(schema.read_text(encoding="utf-8")).get("sha256")
    if recorded != dataset.sha256:
        raise DataError(f"{dataset.source}: not the file that {run} was fitted to (its checksum differs)")
