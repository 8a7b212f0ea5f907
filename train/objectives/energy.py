"""The energy distance between samples of a flow and rows: an objective that needs samples only, no density."""

from typing import Any

import torch
from torch import Tensor

from pushforward.datasets.tables.splits import spread
from pushforward.flows import Flow
from pushforward.train.objectives.base import Metrics, Validation
from pushforward.train.objectives.likelihood import Likelihood, Rows

_PROJECTIONS = 64
_VALIDATION_ROWS = 4_000


def sliced_energy_distance(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    r"""Energy distance between two samples, averaged over projections to lines.

    In one dimension it is :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, which is zero only where the laws agree, and all
    lines together tell all laws apart. Unbiased, so it may be below zero.

    Args:
        x: Rows ``(n, D)``, two or more.
        y: Rows ``(m, D)``, two or more.
        directions: Unit vectors ``(D, K)``.

    Returns:
        ``()``, in the units of the points. Cost: sorting ``n + m`` numbers ``K`` times.

    References:
        - Szekely & Rizzo (2013), Energy statistics, https://doi.org/10.1016/j.jspi.2013.03.018.
        - Kolouri et al. (2019), Generalized sliced distances, https://arxiv.org/abs/1902.00434.
    """
    a, b = (x @ directions).T, (y @ directions).T
    n, m = a.shape[-1], b.shape[-1]
    within_a, within_b, all_pairs = _sum_of_pairs(a), _sum_of_pairs(b), _sum_of_pairs(torch.cat([a, b], -1))
    between = all_pairs - within_a - within_b
    each: Tensor = 2 * between / (n * m) - 2 * within_a / (n * (n - 1)) - 2 * within_b / (m * (m - 1))
    return each.mean()


def _sum_of_pairs(values: Tensor) -> Tensor:
    """Sum of the distances of all pairs of each row ``(K, n)``, from the order of the values."""
    n = values.shape[-1]
    ranks = torch.arange(n, device=values.device, dtype=values.dtype)
    total: Tensor = (values.sort(-1).values * (2 * ranks - (n - 1))).sum(-1)
    return total


def unit_vectors(features: int, count: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Directions ``(features, count)``, uniform over the sphere."""
    drawn = torch.randn(features, count, generator=generator, dtype=like.dtype, device=like.device)
    return torch.nn.functional.normalize(drawn, dim=0)


class Energy:
    """The sliced energy distance between a batch and as many samples of the flow; alone, or added to the NLL.

    Its gradient is the path of the samples. With a context, rows are compared together with what they are given.

    Args:
        train: Training rows.
        validation: Validation rows.
        batch_size: Rows in one step; as many points are drawn.
        step: Steps done, where training goes on.
        seed: Decides noise and directions of the validation.
        likelihood: Whether the NLL is added.
        weight: Weight of the energy distance beside it.

    Raises:
        ValueError: If a batch, or validation, has a single row, which has no distances.
    """

    loss_key = "loss"
    loss_name = "loss"

    def __init__(
        self,
        train: Rows,
        validation: Rows,
        batch_size: int,
        step: int = 0,
        *,
        seed: int = 0,
        likelihood: bool = False,
        weight: float = 1.0,
    ) -> None:
        if min(len(train), len(validation), batch_size) < 2:
            raise ValueError(
                f"Energy: expected at least 2 rows in a batch and in validation; got {min(len(train), batch_size)} and "
                f"{len(validation)}"
            )
        self.rows = Likelihood(train, validation, batch_size, step)
        self.points, self.seed = self.rows.points, seed
        self.likelihood, self.weight = likelihood, weight

    def draw(self, spent: float) -> tuple[Tensor, Tensor | None]:
        """The next batch and its context."""
        return self.rows.draw(spent)

    def loss(self, flow: Flow, batch: Any) -> tuple[Tensor, Tensor]:
        """The distance, or the NLL and the distance; both are logged."""
        x, context = batch
        features = flow.features + (0 if context is None else context.shape[1])
        energy = self._distance(flow, x, context, unit_vectors(features, _PROJECTIONS, x))
        if not self.likelihood:
            return energy, energy.detach().reshape(1)
        nll, terms = self.rows.loss(flow, batch)
        return nll + self.weight * energy, torch.cat([energy.detach().reshape(1), terms])

    def metrics(self, means: list[float]) -> Metrics:
        """The mean loss and its terms."""
        energy, *terms = means
        if not terms:
            return {"train/loss": energy, "train/energy": energy}
        of_rows = self.rows.metrics(terms)
        return {"train/loss": of_rows["train/nll"] + self.weight * energy, "train/energy": energy} | of_rows

    def at(self, step: int) -> Metrics:
        """The epoch."""
        return self.rows.at(step)

    def validate(self, flow: Flow) -> Validation:
        """The loss on validation rows, with the same noise every time, and their NLL."""
        found = self.rows.validate(flow)
        x, context = self.rows.validation.x, self.rows.validation.context
        if len(x) > _VALIDATION_ROWS:  # evenly over them: the first ones may be the oldest
            chosen = torch.from_numpy(spread(len(x), _VALIDATION_ROWS)).to(x.device)
            x, context = x[chosen], None if context is None else context[chosen]
        features = flow.features + (0 if context is None else context.shape[1])
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            energy = float(self._distance(flow, x, context, unit_vectors(features, 4 * _PROJECTIONS, x)))
        loss = found.loss + self.weight * energy if self.likelihood else energy
        return Validation(loss, {"val/nll": found.loss, "val/energy": energy} | found.metrics)

    def _distance(self, flow: Flow, x: Tensor, context: Tensor | None, directions: Tensor) -> Tensor:
        if context is None:
            return sliced_energy_distance(x, flow.rsample(len(x)), directions)
        drawn = flow.rsample((), context)
        return sliced_energy_distance(torch.cat([x, context], -1), torch.cat([drawn, context], -1), directions)
