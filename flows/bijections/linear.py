"""Linear bijections: permutations, LU-factored matrices and low-rank updates of the identity."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.bijections.base import Bijection, saturate
from pushforward.flows.checks import at_least_single
from pushforward.flows.kernels.description import Description
from pushforward.flows.kernels.layers import Layer


class Permutation(Bijection):
    """Reorder the features: output ``i`` is input ``order[i]``.

    Args:
        order: A permutation of ``0 .. D-1``.

    Example:
        >>> z, log_det = Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
        >>> z.tolist()
        [12.0, 10.0, 11.0]
    """

    order: list[int]
    _order: Tensor
    _back: Tensor
    adopted = ("order",)

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__(len(order))
        self.adopt(order=order)

    def adopt(self, **arguments: Any) -> None:
        order = [int(i) for i in arguments["order"]]
        if sorted(order) != list(range(self.features)):
            raise ValueError(f"Permutation: expected an order of 0 .. {self.features - 1}; got {order}")
        self.order = order
        positions = torch.tensor(order, device="cpu")
        self.set_constant("_order", positions)
        self.set_constant("_back", positions.argsort())

    @classmethod
    def reverse(cls, features: int) -> "Permutation":
        """The features in reverse order."""
        return cls(range(features - 1, -1, -1))

    @classmethod
    def random(cls, features: int) -> "Permutation":
        """A random order from torch's global generator; never the identity if there are two features or more."""

        def draw() -> list[int]:
            order: list[int] = torch.randperm(features, device="cpu").tolist()  # the default device may be meta
            return order

        order = draw()
        while features > 1 and order == list(range(features)):
            order = draw()
        return cls(order)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        return x.index_select(-1, self._order), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        return z.index_select(-1, self._back), z.new_zeros(z.shape[:-1])

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.forward(x), score.index_select(-1, self._order)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self.inverse(z), score.index_select(-1, self._back)

    def describe(self) -> Description | None:
        found = Description()
        found.guard.attribute(self, "order", self.order)
        return found.of(Layer("permute", order=tuple(self.order)))

    def config(self) -> dict[str, Any]:
        return {"order": self.order}


class LULinear(Bijection):
    r"""Trainable linear map :math:`z = LUx + b`, :math:`L` unit lower and :math:`U` upper triangular.

    An exponential keeps the diagonal of :math:`U` positive, so the log-determinant is the sum of its logarithms. The
    layer starts as the identity.

    Args:
        features: Number of features :math:`D`.

    Cost:
        :math:`O(D^2)` per point in both directions; the inverse is two triangular solves.

    References:
        - Kingma & Dhariwal (2018), Glow, https://arxiv.org/abs/1807.03039, section 3.2.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        self.check_dtypes(self.bias, x)
        x = saturate(x)
        if done := self.by_kernels(x, None, inverse=False):
            return done[0], done[1]
        lower, upper = _factors(self.lower, self.upper, self.log_diagonal)
        z = x @ (lower @ upper).transpose(-1, -2) + self.bias
        return z, self.log_diagonal.sum().expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        self.check_dtypes(self.bias, z)
        z = saturate(z)
        if done := self.by_kernels(z, None, inverse=True):
            return done[0], done[1]
        lower, upper = map(at_least_single, _factors(self.lower, self.upper, self.log_diagonal))
        # All points in one matrix: a batch of one-row systems would copy the factors for each point.
        y = at_least_single(z - self.bias).reshape(-1, self.features)
        # y = x U^T L^T, solved from the right: first for x U^T, then for x.
        y = torch.linalg.solve_triangular(lower.transpose(-1, -2), y, upper=True, left=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper.transpose(-1, -2), y, upper=False, left=False)
        return x.reshape(z.shape).to(z.dtype), (-self.log_diagonal.sum()).expand(z.shape[:-1])

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():  # score of z = score of x times the inverse matrix
            lower, upper = map(at_least_single, _factors(self.lower, self.upper, self.log_diagonal))
            rows = at_least_single(score).reshape(-1, self.features)
            rows = torch.linalg.solve_triangular(upper, rows, upper=True, left=False)
            rows = torch.linalg.solve_triangular(lower, rows, upper=False, left=False, unitriangular=True)
        return *self.forward(x), rows.reshape(score.shape).to(score.dtype)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            lower, upper = _factors(self.lower, self.upper, self.log_diagonal)
            score = score @ (lower @ upper)
        return *self.inverse(z), score

    def describe(self) -> Description | None:
        found = Description()
        for name in ("lower", "upper"):
            found.add(self, name, self.features, self.features)
        for name in ("log_diagonal", "bias"):
            found.add(self, name, self.features)
        return found.of(Layer("linear"))

    def config(self) -> dict[str, Any]:
        return {"features": self.features}


class LowRankLinear(Bijection):
    r"""Linear map with a low-rank inverse update: :math:`x = z + U V^\top z`, in :math:`O(D r)` both ways.

    With a standard-normal :math:`z` and a diagonal scale after it, :math:`x` can have every covariance that is a
    diagonal matrix plus one of rank :math:`r`, and more. It starts as the identity, because :math:`U` starts at zero.

    Args:
        features: Number of features :math:`D`.
        rank: Rank :math:`r` of the update.

    References:
        - Rezende & Mohamed (2015), https://arxiv.org/abs/1505.05770, section 4.1: the planar flow, whose determinant
          uses the same lemma; this is its linear case with :math:`r` terms.
    """

    def __init__(self, features: int, rank: int) -> None:
        super().__init__(features)
        if not 1 <= rank <= features:
            raise ValueError(f"LowRankLinear: expected a rank from 1 to {features}; got {rank}")
        self.rank = rank
        self.left = nn.Parameter(torch.zeros(features, rank))
        self.right = nn.Parameter(torch.randn(features, rank) / math.sqrt(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        self.check_dtypes(self.left, x)
        x = saturate(x)
        core = self._core()
        # The Woodbury identity: (I + U V')^-1 = I - U (I + V'U)^-1 V'
        shared = torch.linalg.solve(at_least_single(core), at_least_single(x @ self.right).unsqueeze(-1)).squeeze(-1)
        shared = shared.to(x.dtype)
        return x - shared @ self.left.T, -self._log_det(core).expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        self.check_dtypes(self.left, z)
        z = saturate(z)
        return z + (z @ self.right) @ self.left.T, self._log_det(self._core()).expand(z.shape[:-1])

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "rank": self.rank}

    def _core(self) -> Tensor:
        """The matrix ``I + V'U``, of shape ``(rank, rank)``."""
        return self.right.T @ self.left + torch.eye(self.rank, dtype=self.left.dtype, device=self.left.device)

    def _log_det(self, core: Tensor) -> Tensor:
        # The determinant lemma: det(I + U V') = det(I + V'U).
        log_det: Tensor = torch.linalg.slogdet(at_least_single(core)).logabsdet.to(core.dtype)
        return log_det


def _factors(lower: Tensor, upper: Tensor, log_diagonal: Tensor) -> tuple[Tensor, Tensor]:
    eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    return lower.tril(-1) + eye, upper.triu(1) + torch.diag(log_diagonal.exp())
