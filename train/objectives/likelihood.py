"""Maximum likelihood, the objective of flows that are fitted to rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pushforward.common.errors import ConfigError
from pushforward.common.text import listed
from pushforward.evaluate.likelihood import log_prob, nll_from
from pushforward.flows import Flow, Mixture, Model, members_of
from pushforward.train.layer_metrics import log_det_terms
from pushforward.train.objectives.base import Metrics, Objective, Validation

_LAYER_ROWS = 1_000  # validation rows for the log-determinants of single layers

# Metrics that are computed in standardised units and logged in the units of the data.
_SHIFTED = ("train/nll", "train/log_det", "val/nll", "best/val_nll")


@dataclass(frozen=True)
class RowTensors:
    """Rows as tensors on the device: standardised features, context, bin widths for dequantization, weights.

    Attributes:
        x: Features ``(n, D)``.
        context: Context ``(n, C)`` or None.
        bin_widths: Widths ``(D,)`` of the uniform noise to add in each step, in the units of ``x``; None for no noise.
        weights: Weights of the rows ``(n,)``, which need no normalisation; None for equal ones.
        numbers: Number of each row ``(n,)`` where it came from, for messages; None for their places.
    """

    x: Tensor
    context: Tensor | None = None
    bin_widths: Tensor | None = None
    weights: Tensor | None = None
    numbers: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def noised(self) -> Tensor:
        """The features, dequantized by new noise."""
        return self.x if self.bin_widths is None else _dequantize(self.x, self.bin_widths)

    def without_density(self, log_probs: Tensor) -> str:
        """Which rows have log-densities ``(n,)`` that are not finite, in words; empty if none has."""
        is_bad = ~log_probs.isfinite().cpu()
        if self.weights is not None:
            is_bad &= self.weights.cpu() > 0
        if not bool(is_bad.any()):
            return ""
        places = is_bad.nonzero().flatten().numpy()
        values = sorted({f"{value:g}" for value in log_probs[is_bad].tolist()})
        names = [str(number) for number in (places if self.numbers is None else self.numbers[places])]
        rows = f"row {names[0]}" if len(names) == 1 else f"rows {listed(names)}"
        return f"the log-density is {' or '.join(values)} at validation {rows}, counted from 0"


class Batch(NamedTuple):
    """Rows of a step ``(b, D)``, their context ``(b, C)``, and their weights ``(b,)`` of mean 1 over all rows."""

    x: Tensor
    context: Tensor | None = None
    weights: Tensor | None = None


class Likelihood(Objective):
    """The mean negative log-likelihood of rows, in the units of the rows.

    Every step draws a batch, without replacement within an epoch, and dequantizes it by new noise. Validation reads all
    validation rows and adds no noise.

    Args:
        train: Training rows.
        validation: Validation rows, already dequantized.
        batch_size: Rows in a step.
        step: Steps already done, if training is resumed.
        seed: Seed of the order of the rows; torch's initial seed by default.
        offset: Added to an NLL in the units of the rows to get that in the units of the data, in nats.
    """

    loss_key = "nll"
    loss_name = "NLL"
    takes_weights, takes_mixtures, is_likelihood = True, True, True

    def __init__(
        self,
        train: RowTensors,
        validation: RowTensors,
        batch_size: int,
        step: int = 0,
        *,
        seed: int | None = None,
        offset: float = 0.0,
    ) -> None:
        self.validation, self.offset = validation, offset
        self.batches = Batches(train, batch_size, step, seed)
        self.batch_size = self.batches.batch_size

    @classmethod
    def make(cls, problem: Any, state: Any) -> "Likelihood":
        train, validation, place = rows_of(problem, state)
        return cls(train, validation, problem.options.train.batch_size, **place)

    def draw(self, spent: float) -> Batch:
        """The next batch."""
        return self.batches.next()

    def loss(self, flow: Model, batch: Any) -> tuple[Tensor, Tensor]:
        """The NLL of a batch, and its two terms.

        For a mixture of flows the numbers are means over the members, which train independently. The loss is scaled so
        that the norm of its gradient is about that of a single member, as gradient clipping expects.
        """
        x, context, weights = batch
        members = members_of(flow) if isinstance(flow, Mixture) else [flow]
        terms = [
            -(term if weights is None else weights * term).mean()
            for member in members
            for term in log_prob_terms(member, x, context)
        ]
        numbers = torch.stack([term.detach() for term in terms]).unflatten(0, (-1, 2)).mean(0)
        return torch.stack(terms).sum() / len(members) ** 0.5, numbers

    def metrics(self, means: list[float]) -> Metrics:
        """The mean NLL and its two terms, base density and log-determinant."""
        base_nll, log_det_nll = means
        return {"train/nll": base_nll + log_det_nll, "train/base": base_nll, "train/log_det": log_det_nll}

    def step_metrics(self, step: int) -> Metrics:
        """The epoch."""
        return {"train/epoch": step / self.batches.per_epoch}

    def in_data_units(self, metrics: Mapping[str, float]) -> Metrics:
        """Metrics with the log-determinant of the standardisation, a metric of its own in validations."""
        shifted = {key: value + self.offset if key in _SHIFTED else value for key, value in metrics.items()}
        if self.offset and f"val/{self.loss_key}" in metrics:
            shifted["log_det/standardize"] = self.offset
        return shifted

    def validate(self, flow: Model) -> Validation:
        """The NLL of the validation rows with its standard error, and the log-determinant of each layer."""
        x, context = self.validation.x, self.validation.context
        log_probs = log_prob(flow, x, context)
        result = nll_from(log_probs, self.validation.weights)
        terms = {}
        if isinstance(flow, Flow):
            terms = log_det_terms(flow, x[:_LAYER_ROWS], None if context is None else context[:_LAYER_ROWS])
        metrics = {"val/nll_se": result.se} | {f"log_det/{name}": -float(term) for name, term in terms.items()}
        return Validation(result.nll, metrics, note=self.validation.without_density(log_probs))


class OfRows(Objective):
    """An objective with other terms than the NLL, of the batches that :class:`Likelihood` draws.

    Attributes:
        rows: The likelihood of the rows.
    """

    rows: Likelihood

    def draw(self, spent: float) -> Any:
        """The next batch."""
        return self.rows.draw(spent)

    def step_metrics(self, step: int) -> Metrics:
        """The epoch."""
        return self.rows.step_metrics(step)

    def in_data_units(self, metrics: Mapping[str, float]) -> Metrics:
        """The metrics with NLLs in the units of the data."""
        return self.rows.in_data_units(metrics)


def rows_of(problem: Any, state: Any) -> tuple[RowTensors, RowTensors, dict[str, Any]]:
    """Training and validation rows of a problem of rows, and the arguments that say where training is."""
    prepared = problem.prepared
    place = {
        "step": state.progress.step,
        "seed": problem.options.seed,
        "offset": -prepared.standardize.log_det,
    }
    return prepared.training_rows(state.device), prepared.validation_rows(state.device), place


def log_prob_terms(flow: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two terms of the log-density; of another module than a flow, the log-density and zero."""
    if isinstance(flow, Flow):
        return flow.log_prob_terms(x, context)
    value: Any = flow.log_prob(x) if context is None else flow.log_prob(x, context)
    expected = f"flow: log_prob: expected a tensor of {len(x)} log-densities for {len(x)} rows"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"one of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{expected}; got {got}")
    if value.shape != x.shape[:-1]:  # (n, 1) would be broadcast against weights (n,)
        raise ConfigError(f"{expected}; got the shape {tuple(value.shape)}")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ConfigError(f"{expected} that depend on the parameters; got a tensor without a gradient")
    return value, value.new_zeros(())


def _dequantize(x: Tensor, bin_widths: Tensor) -> Tensor:
    """Add uniform noise of one bin width, centred at zero."""
    return x + bin_widths * (torch.rand_like(x) - 0.5)


class Batches:
    """Dequantized batches of rows, without replacement within an epoch, drawn on the device of the rows.

    Rows that do not fill a batch are left out of the epoch: a batch of another size would be compiled separately.

    Args:
        rows: The rows.
        batch_size: Rows in a batch.
        step: Batches already drawn, if training is resumed: the order of an epoch depends on the seed alone.
        seed: The seed; torch's initial seed by default.
    """

    def __init__(self, rows: RowTensors, batch_size: int, step: int, seed: int | None = None) -> None:
        self.rows = rows
        self.weights = None if rows.weights is None else rows.weights / rows.weights.mean()
        self.batch_size = min(batch_size, len(rows))
        self.per_epoch = max(1, len(rows) // self.batch_size)
        self.epoch, self.position = divmod(step, self.per_epoch)
        self.generator = torch.Generator(rows.x.device)
        self.seed = torch.initial_seed() if seed is None else seed
        if self.position:
            self._shuffle()

    def next(self) -> Batch:
        """The next batch of ``batch_size`` rows."""
        x, context, bin_widths = self.rows.x, self.rows.context, self.rows.bin_widths
        if self.position == 0:
            self._shuffle()
        start = self.position * self.batch_size
        chosen = self.order[start : start + self.batch_size]
        self.position = (self.position + 1) % self.per_epoch
        self.epoch += self.position == 0
        batch = x[chosen]
        if bin_widths is not None:
            batch = _dequantize(batch, bin_widths)
        weights = None if self.weights is None else self.weights[chosen]
        return Batch(batch, None if context is None else context[chosen], weights)

    def _shuffle(self) -> None:
        self.generator.manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        x = self.rows.x
        self.order = torch.randperm(len(x), device=x.device, generator=self.generator)
