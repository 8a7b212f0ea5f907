"""The energy distance between samples of a flow and rows: an objective that needs samples but no density."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from pushforward.datasets.tables.splits import evenly_spaced
from pushforward.flows import Flow
from pushforward.flows.random_state import seeded
from pushforward.train.objectives.base import Metrics, Validation
from pushforward.train.objectives.likelihood import Likelihood, OfRows, RowTensors, rows_of

_PROJECTIONS = 64
MOST_ENERGY_ROWS = 4_000
"""Most validation rows whose energy distance is computed."""


def sliced_energy_distance(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    r"""Energy distance between two samples, averaged over projections to lines.

    In one dimension it is :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, which is zero only if the distributions are
    equal; the projections to all lines determine a distribution. The estimate is unbiased, so it may be negative.

    Args:
        x: Rows ``(n, D)``, two or more.
        y: Rows ``(m, D)``, two or more.
        directions: Unit vectors ``(D, K)``.

    Returns:
        ``()``, in the units of the rows. Cost: sorting ``n + m`` numbers ``K`` times.

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
    """Sum of the distances of all pairs in each row ``(K, n)``, from the order of the values."""
    n = values.shape[-1]
    ranks = torch.arange(n, device=values.device, dtype=values.dtype)
    total: Tensor = (values.sort(-1).values * (2 * ranks - (n - 1))).sum(-1)
    return total


def unit_vectors(features: int, count: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions ``(features, count)`` uniformly from the sphere."""
    drawn = torch.randn(features, count, generator=generator, dtype=like.dtype, device=like.device)
    return torch.nn.functional.normalize(drawn, dim=0)


class Energy(OfRows):
    """The sliced energy distance between a batch and as many samples of the flow, alone or added to the NLL.

    The gradient flows through the samples. With a context, rows and context are compared jointly.

    Args:
        train: Training rows.
        validation: Validation rows.
        batch_size: Rows in a step, and samples of the flow.
        step: Steps already done, if training is resumed.
        seed: Seed of the noise and of the directions of the validation.
        likelihood: Whether to add the NLL.
        weight: Weight of the energy distance relative to the NLL.
        offset: As for :class:`Likelihood`.

    Raises:
        ValueError: If a batch or the validation part has a single row, which has no distances.
    """

    least_batch = 2
    with_likelihood: ClassVar[bool] = False

    def __init__(
        self,
        train: RowTensors,
        validation: RowTensors,
        batch_size: int,
        step: int = 0,
        *,
        seed: int = 0,
        likelihood: bool = False,
        weight: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        if min(len(train), len(validation), batch_size) < 2:
            raise ValueError(
                f"Energy: expected at least 2 rows in a batch and in validation; got {min(len(train), batch_size)} and "
                f"{len(validation)}"
            )
        self.rows = Likelihood(train, validation, batch_size, step, seed=seed, offset=offset)
        self.batch_size, self.seed = self.rows.batch_size, seed
        self.likelihood, self.weight = likelihood, weight

    @classmethod
    def make(cls, problem: Any, state: Any) -> "Energy":
        train, validation, place = rows_of(problem, state)
        options = problem.options
        return cls(
            train,
            validation,
            options.train.batch_size,
            **place,
            likelihood=cls.with_likelihood,
            weight=options.objective.energy_weight,
        )

    def loss(self, flow: Flow, batch: Any) -> tuple[Tensor, Tensor]:
        """The distance, or the NLL and the distance; both are logged."""
        x, context, _ = batch
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
        nll = self.rows.metrics(terms)
        return {"train/loss": nll["train/nll"] + self.weight * energy, "train/energy": energy} | nll

    def validate(self, flow: Flow) -> Validation:
        """The loss on validation rows, with the same noise every time, and their NLL."""
        nll = self.rows.validate(flow)
        x, context = self.rows.validation.x, self.rows.validation.context
        if len(x) > MOST_ENERGY_ROWS:  # evenly spaced: the file may be in the order of time
            chosen = torch.from_numpy(evenly_spaced(len(x), MOST_ENERGY_ROWS)).to(x.device)
            x, context = x[chosen], None if context is None else context[chosen]
        features = flow.features + (0 if context is None else context.shape[1])
        with torch.no_grad(), seeded(self.seed, x.device):
            energy = float(self._distance(flow, x, context, unit_vectors(features, 4 * _PROJECTIONS, x)))
        loss = nll.loss + self.weight * energy if self.likelihood else energy
        note = nll.note if self.likelihood else ""
        return Validation(loss, {"val/nll": nll.loss, "val/energy": energy} | nll.metrics, note=note)

    def _distance(self, flow: Flow, x: Tensor, context: Tensor | None, directions: Tensor) -> Tensor:
        if context is None:
            return sliced_energy_distance(x, flow.rsample(len(x)), directions)
        drawn = flow.rsample((), context)
        return sliced_energy_distance(torch.cat([x, context], -1), torch.cat([drawn, context], -1), directions)


class LikelihoodAndEnergy(Energy):
    """The NLL and the energy distance; arguments as those of :class:`Energy`."""

    uses = ("energy_weight",)
    is_likelihood = with_likelihood = True
