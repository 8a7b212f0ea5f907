"""Maximum likelihood, the objective of flows that are fitted to rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pushforward.evaluate.likelihood import nll
from pushforward.flows import Model, members_of
from pushforward.train.layer_metrics import log_det_terms
from pushforward.train.objectives.base import Metrics, Validation

_LAYER_ROWS = 1_000  # validation rows for the log-determinants of single layers


@dataclass(frozen=True)
class RowTensors:
    """Rows as tensors on the device: standardised features, context, and bin widths for dequantization.

    Attributes:
        x: Features ``(n, D)``.
        context: Context ``(n, C)`` or None.
        bin_widths: Widths ``(D,)`` of the uniform noise to add in each step, in the units of ``x``; None for no noise.
    """

    x: Tensor
    context: Tensor | None = None
    bin_widths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def noised(self) -> Tensor:
        """The features, dequantized by new noise."""
        return self.x if self.bin_widths is None else _dequantize(self.x, self.bin_widths)


class Likelihood:
    """The mean negative log-likelihood of rows, in the units of the rows.

    Every step draws a batch, without replacement within an epoch, and dequantizes it by new noise. Validation reads all
    validation rows and adds no noise.

    Args:
        train: Training rows.
        validation: Validation rows, already dequantized.
        batch_size: Rows in a step.
        step: Steps already done, if training is resumed.
    """

    loss_key = "nll"
    loss_name = "NLL"

    def __init__(self, train: RowTensors, validation: RowTensors, batch_size: int, step: int = 0) -> None:
        self.validation = validation
        self.batches = Batches(train, batch_size, step)
        self.batch_size = self.batches.batch_size

    def draw(self, spent: float) -> tuple[Tensor, Tensor | None]:
        """The next batch and its context."""
        return self.batches.next()

    def loss(self, flow: Model, batch: Any) -> tuple[Tensor, Tensor]:
        """The NLL of a batch, and its two terms.

        For a mixture of flows the numbers are means over the members, which train independently. The loss is scaled so
        that the norm of its gradient is about that of a single member, as gradient clipping expects.
        """
        x, context = batch
        members = members_of(flow)
        terms = [-term.mean() for member in members for term in member.log_prob_terms(x, context)]
        numbers = torch.stack([term.detach() for term in terms]).unflatten(0, (-1, 2)).mean(0)
        return torch.stack(terms).sum() / len(members) ** 0.5, numbers

    def metrics(self, means: list[float]) -> Metrics:
        """The mean NLL and its two terms, base density and log-determinant."""
        base_nll, log_det_nll = means
        return {"train/nll": base_nll + log_det_nll, "train/base": base_nll, "train/log_det": log_det_nll}

    def step_metrics(self, step: int) -> Metrics:
        """The epoch."""
        return {"train/epoch": step / self.batches.per_epoch}

    def validate(self, flow: Model) -> Validation:
        """The NLL of the validation rows with its standard error, and the log-determinant of each layer."""
        x, context = self.validation.x, self.validation.context
        result = nll(flow, x, context)
        terms = log_det_terms(flow, x[:_LAYER_ROWS], None if context is None else context[:_LAYER_ROWS])
        metrics = {"val/nll_se": result.se} | {f"log_det/{name}": -float(term) for name, term in terms.items()}
        return Validation(result.nll, metrics)


def _dequantize(x: Tensor, bin_widths: Tensor) -> Tensor:
    """Add uniform noise of one bin width, centred at zero."""
    return x + bin_widths * (torch.rand_like(x) - 0.5)


class Batches:
    """Dequantized batches of rows, without replacement within an epoch, drawn on the device of the rows.

    Rows that do not fill a batch are left out of the epoch: a batch of another size would be compiled separately.

    Args:
        rows: The rows.
        batch_size: Rows in a batch.
        step: Batches already drawn, if training is resumed: the order of an epoch depends on torch's initial seed only.
    """

    def __init__(self, rows: RowTensors, batch_size: int, step: int) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, len(rows))
        self.per_epoch = max(1, len(rows) // self.batch_size)
        self.epoch, self.position = divmod(step, self.per_epoch)
        self.generator = torch.Generator(rows.x.device)
        self.seed = torch.initial_seed()
        if self.position:
            self._shuffle()

    def next(self) -> tuple[Tensor, Tensor | None]:
        """The next batch ``(batch_size, D)`` and its context."""
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
        return batch, None if context is None else context[chosen]

    def _shuffle(self) -> None:
        self.generator.manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        x = self.rows.x
        self.order = torch.randperm(len(x), device=x.device, generator=self.generator)
