"""Maximum likelihood: the objective of fits to rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pushforward.evaluate.likelihood import nll
from pushforward.flows import Model, members_of
from pushforward.train.layer_metrics import log_det_terms
from pushforward.train.objectives.base import Metrics, Validation

_LAYER_ROWS = 1_000  # validation rows behind the log-determinants of single layers


@dataclass(frozen=True)
class Rows:
    """Rows the loop reads: standardised features, context, and the half-open cell each recorded value stands for.

    Attributes:
        x: Features ``(n, D)`` on the device.
        context: Context ``(n, C)`` or None.
        cell: Widths ``(D,)`` of the uniform noise to add in each step, in the units of ``x``; None for no noise.
    """

    x: Tensor
    context: Tensor | None = None
    cell: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def noised(self) -> Tensor:
        """The features with noise over their cells added once: what the flow is a density of."""
        return self.x if self.cell is None else _spread(self.x, self.cell)


class Likelihood:
    """The mean negative log-likelihood of rows, in the units of the points given.

    Every step draws a batch without replacement within an epoch, and adds uniform noise over the cells of recorded
    values. Validation is exact: all validation rows, noise already added.

    Args:
        train: Training rows.
        validation: Validation rows.
        batch_size: Rows in one step.
        step: Steps done, where training goes on.
    """

    loss_key = "nll"
    loss_name = "NLL"

    def __init__(self, train: Rows, validation: Rows, batch_size: int, step: int = 0) -> None:
        self.validation = validation
        self.batches = _Batches(train, batch_size, step)
        self.points = self.batches.batch_size

    def draw(self, spent: float) -> tuple[Tensor, Tensor | None]:
        """The next batch and its context."""
        return self.batches.next()

    def loss(self, flow: Model, batch: Any) -> tuple[Tensor, Tensor]:
        """The NLL of a batch, and its two terms.

        Of an ensemble it is the mean over the members, which learn each for itself; what is differentiated is scaled so
        that the gradient of all is as long as that of one alone, as clipping needs it.
        """
        x, context = batch
        members = members_of(flow)
        terms = [-term.mean() for member in members for term in member.log_prob_terms(x, context)]
        numbers = torch.stack([term.detach() for term in terms]).unflatten(0, (-1, 2)).mean(0)
        return torch.stack(terms).sum() / len(members) ** 0.5, numbers

    def metrics(self, means: list[float]) -> Metrics:
        """What is logged of the mean terms."""
        base_nll, log_det_nll = means
        return {"train/nll": base_nll + log_det_nll, "train/base": base_nll, "train/log_det": log_det_nll}

    def at(self, step: int) -> Metrics:
        """What is logged of a step besides."""
        return {"train/epoch": step / self.batches.per_epoch}

    def validate(self, flow: Model) -> Validation:
        """The NLL of the validation rows with its standard error, and each layer's share of it."""
        x, context = self.validation.x, self.validation.context
        score = nll(flow, x, context)
        terms = log_det_terms(flow, x[:_LAYER_ROWS], None if context is None else context[:_LAYER_ROWS])
        metrics = {"val/nll_se": score.se} | {f"log_det/{name}": -float(term) for name, term in terms.items()}
        return Validation(score.nll, metrics)


def _spread(x: Tensor, cell: Tensor) -> Tensor:
    """Add noise that is uniform over the cells."""
    return x + cell * (torch.rand_like(x) - 0.5)


class _Batches:
    """Batches of rows, every row once an epoch, drawn and noised on the device the rows live on."""

    def __init__(self, points: Rows, batch_size: int, step: int) -> None:
        self.points = points
        self.batch_size = min(batch_size, len(points))
        # A ragged last batch would be compiled once more: its rows wait for the next epoch.
        self.per_epoch = max(1, len(points) // self.batch_size)
        self.epoch, self.position = divmod(step, self.per_epoch)
        self.generator = torch.Generator(points.x.device)
        self.seed = torch.initial_seed()
        if self.position:
            self._shuffle()

    def next(self) -> tuple[Tensor, Tensor | None]:
        x, context, cell = self.points.x, self.points.context, self.points.cell
        if self.position == 0:
            self._shuffle()
        start = self.position * self.batch_size
        rows = self.order[start : start + self.batch_size]
        self.position = (self.position + 1) % self.per_epoch
        self.epoch += self.position == 0
        batch = x[rows]
        if cell is not None:
            batch = _spread(batch, cell)
        return batch, None if context is None else context[rows]

    def _shuffle(self) -> None:
        self.generator.manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        x = self.points.x
        self.order = torch.randperm(len(x), device=x.device, generator=self.generator)
