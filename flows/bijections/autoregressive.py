"""The masked autoregressive layer, with an inverse that costs about one forward pass."""

from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bijections.base import Bijection, saturate
from pushforward.flows.kernels.description import Description
from pushforward.flows.networks.mapped import describe_layer
from pushforward.flows.networks.masked import MaskedConditioner
from pushforward.flows.univariate.base import Univariate


class MaskedAutoregressive(Bijection):
    r"""Autoregressive layer: :math:`z_d = f(x_d; \theta_d(x_{<d}, c))`.

    The forward direction evaluates the conditioner once. The inverse computes the features one by one; it keeps all
    activations of the conditioner, so that the :math:`D` steps together cost about one forward pass instead of
    :math:`D`. The gradient of each direction costs one backward pass.

    Args:
        conditioner: Masked network with ``univariate.size`` outputs per feature.
        univariate: Map applied to each feature.

    References:
        - Papamakarios et al. (2017), Masked Autoregressive Flow, https://arxiv.org/abs/1705.07057.

    Example:
        >>> from pushforward.flows import MaskedResidualNet, RationalQuadraticSpline
        >>> spline = RationalQuadraticSpline(bins=4)
        >>> layer = MaskedAutoregressive(MaskedResidualNet(3, spline.size), spline)
        >>> z, log_det = layer(torch.zeros(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, conditioner: MaskedConditioner, univariate: Univariate) -> None:
        super().__init__(conditioner.features, conditioner.context)
        if conditioner.outputs_per_feature != univariate.size:
            raise ValueError(
                f"MaskedAutoregressive: expected a conditioner with {univariate.size} outputs a feature; "
                f"got {conditioner.outputs_per_feature}"
            )
        self.conditioner = conditioner
        self.univariate = univariate

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(x, context)
        x, context = saturate(x), context if self.context else None
        if done := self.by_kernels(x, context, inverse=False):
            return done[0], done[1]
        self.check_dtypes(next(self.parameters(), None), x, context)
        # Under autocast the conditioner may return half precision; the map keeps the precision of the points.
        parameters = self.conditioner(x, context).to(x.dtype)
        z, log_derivative = self.univariate.forward(x, parameters)
        return z, log_derivative.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_points(z, context)
        z, context = saturate(z), context if self.context else None
        if done := self.by_kernels(z, context, inverse=True):
            return done[0], done[1]
        self.check_dtypes(next(self.parameters(), None), z, context)
        lead = z.shape[:-1]
        if context is not None:
            lead = torch.broadcast_shapes(lead, context.shape[:-1])
            context = context.expand(*lead, self.context).reshape(-1, self.context)
        points = z.expand(*lead, self.features).reshape(-1, self.features)
        x, log_det = self.conditioner.incremental(points, context).solve(self.univariate, points)
        return x.reshape(*lead, self.features), log_det.reshape(lead)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._with_score(x, score, context, inverse=False) or super().forward_and_score(x, score, context)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._with_score(z, score, context, inverse=True) or super().inverse_and_score(z, score, context)

    def _with_score(self, points: Tensor, score: Tensor, context: Tensor | None, *, inverse: bool) -> Any:
        self.check_points(points, context)
        return self.by_kernels(points, context if self.context else None, inverse=inverse, score=score)

    def describe(self) -> Description | None:
        return describe_layer(self, self.conditioner, self.univariate, self.features)

    def config(self) -> dict[str, Any]:
        return {"conditioner": self.conditioner, "univariate": self.univariate}
