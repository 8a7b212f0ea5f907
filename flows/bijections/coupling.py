"""The coupling pattern: one part of the features passes through and steers the map of the other part."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.flows.bijections import fused
from pushforward.flows.bijections.base import Bijection, pull_back, without_dropout
from pushforward.flows.networks.residual import ResidualNet
from pushforward.flows.univariate.base import Univariate


class Coupling(Bijection):
    r"""Coupling layer: :math:`z_A = x_A`, :math:`z_B = f(x_B; \theta(x_A, c))`.

    Both directions cost one evaluation of the conditioner.

    Args:
        conditioner: Network from the identity features to ``len(B) * univariate.size`` parameters.
        univariate: Map applied to each transformed feature.
        transformed: For every feature, whether it is transformed; at least one is.

    References:
        - Dinh et al. (2017), https://arxiv.org/abs/1605.08803, section 3.

    Example:
        >>> from pushforward.flows import Affine, ResidualNet
        >>> layer = Coupling(ResidualNet(1, 2), Affine(), transformed=[False, True])
        >>> z, log_det = layer(torch.zeros(5, 2))
        >>> z.shape, log_det.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    _identity_index: Tensor
    _transformed_index: Tensor
    _merge: Tensor

    def __init__(self, conditioner: ResidualNet, univariate: Univariate, *, transformed: Sequence[bool]) -> None:
        super().__init__(len(transformed), conditioner.context)
        transformed_features = [i for i, moves in enumerate(transformed) if moves]
        identity_features = [i for i, moves in enumerate(transformed) if not moves]
        if not transformed_features:
            raise ValueError("Coupling: expected at least one transformed feature; got none")
        if (
            conditioner.inputs != len(identity_features)
            or conditioner.outputs != len(transformed_features) * univariate.size
        ):
            raise ValueError(
                f"Coupling: expected a conditioner from {len(identity_features)} inputs to "
                f"{len(transformed_features)} x {univariate.size} outputs; "
                f"got {conditioner.inputs} to {conditioner.outputs}"
            )
        self.conditioner = conditioner
        self.univariate = univariate
        self.transformed = [bool(moves) for moves in transformed]
        self.identity_features, self.transformed_features = tuple(identity_features), tuple(transformed_features)
        merge = torch.empty(len(transformed), dtype=torch.long)
        merge[torch.tensor(identity_features + transformed_features)] = torch.arange(len(transformed))
        self.register_buffer("_identity_index", torch.tensor(identity_features, dtype=torch.long), persistent=False)
        self.register_buffer(
            "_transformed_index", torch.tensor(transformed_features, dtype=torch.long), persistent=False
        )
        self.register_buffer("_merge", merge, persistent=False)

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

    def config(self) -> dict[str, Any]:
        return {
            "conditioner": self.conditioner,
            "univariate": self.univariate,
            "transformed": self.transformed,
        }

    def _transform(self, points: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        self.check_points(points, context)
        context = context if self.context else None
        if done := self._fused(points, context, inverse):
            return done[0], done[1]
        identity_features, transformed_features = (
            points[..., self._identity_index],
            points[..., self._transformed_index],
        )
        apply = self.univariate.inverse if inverse else self.univariate.forward
        moved, log_derivative = apply(transformed_features, self._parameters_of(identity_features, context))
        return self._merged(identity_features, moved), log_derivative.sum(-1)

    def _transform_with_score(
        self, points: Tensor, score: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.check_points(points, context)
        context = context if self.context else None
        if done := self._fused(points, context, inverse, score):
            return done[0], done[1], done[2]
        forward, back = self.univariate.forward, self.univariate.inverse
        apply, undo = (back, forward) if inverse else (forward, back)
        identity_features, transformed_features = (
            points[..., self._identity_index],
            points[..., self._transformed_index],
        )
        followed = torch.is_grad_enabled()
        with torch.enable_grad(), without_dropout(self.conditioner):
            # Both directions have the same identity features, so one evaluation of the conditioner serves both.
            own = (
                identity_features
                if followed and identity_features.requires_grad
                else identity_features.detach().requires_grad_()
            )
            parameters = self._parameters_of(own, context)
        with torch.set_grad_enabled(followed):
            moved, log_derivative = apply(transformed_features, parameters)
        score = score.detach().expand(*moved.shape[:-1], self.features)
        with torch.enable_grad():
            at = [moved.detach().requires_grad_(), parameters.detach().requires_grad_()]
            value, log_back = undo(*at)
            towards = (score[..., self._transformed_index], torch.ones_like(log_back))
            by_value, by_parameters = pull_back((value, log_back), at, towards)
        scored = score[..., self._identity_index]
        if self.identity_features:
            scored = scored + pull_back((parameters,), (own,), (by_parameters,), retain_graph=followed)[0]
        return self._merged(identity_features, moved), log_derivative.sum(-1), self._merged(scored, by_value)

    def _fused(self, points: Tensor, context: Tensor | None, inverse: bool, score: Tensor | None = None) -> Any:
        sides = {"identity_features": self.identity_features, "transformed_features": self.transformed_features}
        return fused.layer(self.conditioner, self.univariate, points, context, inverse=inverse, score=score, **sides)

    def _parameters_of(self, identity_features: Tensor, context: Tensor | None) -> Tensor:
        # Under autocast the conditioner may answer in half precision; the map is computed in that of the points.
        parameters: Tensor = self.conditioner(identity_features, context).to(identity_features.dtype)
        each: Tensor = parameters.unflatten(-1, (-1, self.univariate.size))
        return each

    def _merged(self, identity_features: Tensor, moved: Tensor) -> Tensor:
        # A context may have brought leading dimensions that the identity part has not seen.
        identity_features = identity_features.expand(*moved.shape[:-1], identity_features.shape[-1])
        return torch.cat([identity_features, moved], dim=-1)[..., self._merge]
