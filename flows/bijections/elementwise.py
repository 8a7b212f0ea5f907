"""An elementwise layer: each feature has a univariate map with its own trainable parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.bijections.base import Bijection
from pushforward.flows.univariate.base import Univariate


class Elementwise(Bijection):
    r"""Elementwise layer :math:`z_d = f(x_d; \theta_d)`, without a network.

    As the first layer it models the shape of the marginals, at little cost. After a coupling, applied to the features
    that the coupling leaves unchanged, it is the "unconditional transform" of the spline couplings of Durkan et al.
    (2019). It starts as the identity.

    Args:
        features: Number of features :math:`D`.
        univariate: The map.
        mapped: For each feature, whether it is mapped; the others are unchanged. None maps all of them.

    Cost:
        One evaluation of the map per point and mapped feature, in both directions.

    References:
        - Durkan et al. (2019), Neural Spline Flows, https://arxiv.org/abs/1906.04032, appendix B.1.

    Example:
        >>> from pushforward.flows import RationalQuadraticSpline
        >>> layer = Elementwise(3, RationalQuadraticSpline(bins=16), mapped=[True, False, True])
        >>> z, log_det = layer(torch.zeros(5, 3))
        >>> z.shape, log_det.shape, layer.raw.shape
        (torch.Size([5, 3]), torch.Size([5]), torch.Size([2, 47]))
    """

    mapped: list[bool]
    _mapped: Tensor
    _merge: Tensor
    adopted = ("mapped",)

    def __init__(self, features: int, univariate: Univariate, *, mapped: Sequence[bool] | None = None) -> None:
        super().__init__(features)
        mapped = [True] * features if mapped is None else mapped
        self.univariate = univariate
        self.raw = nn.Parameter(univariate.identity(sum(map(bool, mapped))))
        """Parameters of the maps ``(mapped features, univariate.size)``."""
        self.adopt(mapped=mapped)

    def adopt(self, **arguments: Any) -> None:
        mapped = [bool(one) for one in arguments["mapped"]]
        indices = [i for i, one in enumerate(mapped) if one]
        if len(mapped) != self.features or not indices:
            raise ValueError(
                f"Elementwise: expected mapped of {self.features} truth values, at least one of them true; got {mapped}"
            )
        if len(indices) != len(self.raw):
            raise ValueError(f"Elementwise: expected {len(self.raw)} mapped features; got {mapped}")
        self.mapped = mapped
        self.set_constant("_mapped", torch.tensor(indices, device="cpu"))
        # Positions of the output's features in the concatenation of all inputs and the mapped features.
        places = {i: self.features + place for place, i in enumerate(indices)}
        merge = [places.get(i, i) for i in range(self.features)]
        self.set_constant("_merge", torch.tensor(merge, device="cpu"))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, inverse=True)

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "univariate": self.univariate, "mapped": self.mapped}

    def _transform(self, points: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        self.check_points(points, context)
        self.check_dtypes(self.raw, points)
        apply = self.univariate.inverse if inverse else self.univariate.forward
        if all(self.mapped):
            value, log_derivative = apply(points, self.raw)
            return value, log_derivative.sum(-1)
        value, log_derivative = apply(points.index_select(-1, self._mapped), self.raw)
        return torch.cat([points, value], dim=-1).index_select(-1, self._merge), log_derivative.sum(-1)
