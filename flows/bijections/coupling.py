"""The coupling layer: a part of the features is unchanged and determines the map of the other part."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bijections.base import Bijection, pull_back, saturate, without_dropout
from pushforward.flows.kernels.description import Description
from pushforward.flows.networks.mapped import describe_layer
from pushforward.flows.networks.residual import ResidualNet
from pushforward.flows.univariate.base import Univariate


class Coupling(Bijection):
    r"""Coupling layer: :math:`z_A = x_A`, :math:`z_B = f(x_B; \theta(x_A, c))`.

    Both directions cost one evaluation of the conditioner.

    Args:
        conditioner: Network from the identity features to ``len(B) * univariate.size`` parameters.
        univariate: Map applied to each transformed feature.
        transformed: For each feature, whether it is transformed; at least one is.

    References:
        - Dinh et al. (2017), https://arxiv.org/abs/1605.08803, section 3.

    Example:
        >>> from pushforward.flows import Affine, ResidualNet
        >>> layer = Coupling(ResidualNet(1, 2), Affine(), transformed=[False, True])
        >>> z, log_det = layer(torch.zeros(5, 2))
        >>> z.shape, log_det.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    transformed: list[bool]
    _identity_index: Tensor
    _transformed_index: Tensor
    _merge: Tensor
    adopted = ("transformed",)

    def __init__(self, conditioner: ResidualNet, univariate: Univariate, *, transformed: Sequence[bool]) -> None:
        super().__init__(len(transformed), conditioner.context)
        self.conditioner = conditioner
        self.univariate = univariate
        self.adopt(transformed=transformed)

    def adopt(self, **arguments: Any) -> None:
        transformed = [bool(is_transformed) for is_transformed in arguments["transformed"]]
        a = [i for i, is_transformed in enumerate(transformed) if not is_transformed]
        b = [i for i, is_transformed in enumerate(transformed) if is_transformed]
        if not b:
            raise ValueError("Coupling: expected at least one transformed feature; got none")
        conditioner, size = self.conditioner, self.univariate.size
        if conditioner.inputs != len(a) or conditioner.outputs != len(b) * size:
            raise ValueError(
                f"Coupling: expected a conditioner from {len(a)} inputs to {len(b)} x {size} outputs; "
                f"got {conditioner.inputs} to {conditioner.outputs}"
            )
        self.transformed = transformed
        self.identity_features, self.transformed_features = tuple(a), tuple(b)
        self.set_constant("_identity_index", torch.tensor(a, dtype=torch.long, device="cpu"))
        self.set_constant("_transformed_index", torch.tensor(b, device="cpu"))
        self.set_constant("_merge", torch.tensor(a + b, device="cpu").argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, inverse=True)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._transform_with_score(x, score, context, inverse=False)

    def inverse_and_score(
        self, z: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._transform_with_score(z, score, context, inverse=True)

    def describe(self) -> Description | None:
        found = describe_layer(
            self,
            self.conditioner,
            self.univariate,
            self.features,
            identity_features=self.identity_features,
            transformed_features=self.transformed_features,
        )
        if found is not None:
            found.guard.attribute(self, "transformed_features", self.transformed_features)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "conditioner": self.conditioner,
            "univariate": self.univariate,
            "transformed": self.transformed,
        }

    def _transform(self, points: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        self.check_points(points, context)
        points, context = saturate(points), context if self.context else None
        if done := self.by_kernels(points, context, inverse=inverse):
            return done[0], done[1]
        self.check_dtypes(next(self.parameters(), None), points, context)
        a, b = points[..., self._identity_index], points[..., self._transformed_index]
        apply = self.univariate.inverse if inverse else self.univariate.forward
        value, log_derivative = apply(b, self._parameters_of(a, context))
        return self._merged(a, value), log_derivative.sum(-1)

    def _transform_with_score(
        self, points: Tensor, score: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.check_points(points, context)
        context = context if self.context else None
        if done := self.by_kernels(points, context, inverse=inverse, score=score):
            return done[0], done[1], done[2]
        self.check_dtypes(next(self.parameters(), None), points, context)
        forward, back = self.univariate.forward, self.univariate.inverse
        apply, undo = (back, forward) if inverse else (forward, back)
        a, b = points[..., self._identity_index], points[..., self._transformed_index]
        with_grad = torch.is_grad_enabled()
        with torch.enable_grad(), without_dropout(self.conditioner):
            # Both directions have the same identity features, so one evaluation of the conditioner serves both.
            source = a if with_grad and a.requires_grad else a.detach().requires_grad_()
            parameters = self._parameters_of(source, context)
        with torch.set_grad_enabled(with_grad):
            value, log_derivative = apply(b, parameters)
        score = score.detach().expand(*value.shape[:-1], self.features)
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_(), parameters.detach().requires_grad_()]
            back_value, back_log_derivative = undo(*leaves)
            cotangents = (score[..., self._transformed_index], torch.ones_like(back_log_derivative))
            score_b, g_parameters = pull_back((back_value, back_log_derivative), leaves, cotangents)
        score_a = score[..., self._identity_index]
        if self.identity_features:
            score_a = score_a + pull_back((parameters,), (source,), (g_parameters,), retain_graph=with_grad)[0]
        return self._merged(a, value), log_derivative.sum(-1), self._merged(score_a, score_b)

    def _parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor:
        """Parameters ``(..., len(B), size)`` of the maps, from the identity features."""
        # Under autocast the conditioner may return half precision; the map keeps the precision of the points.
        parameters: Tensor = self.conditioner(a, context).to(a.dtype)
        each: Tensor = parameters.unflatten(-1, (-1, self.univariate.size))
        return each

    def _merged(self, a: Tensor, b: Tensor) -> Tensor:
        """All features in their order, from the identity and the transformed ones."""
        a = a.expand(*b.shape[:-1], a.shape[-1])  # the context may have more leading dimensions than the points
        return torch.cat([a, b], dim=-1)[..., self._merge]
