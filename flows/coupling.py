"""The coupling pattern: one part of the features passes through and steers the map of the other part."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.flows import fused
from pushforward.flows.bijection import Bijection
from pushforward.flows.conditioners import ResidualNet
from pushforward.flows.univariate import Univariate


class Coupling(Bijection):
    r"""Coupling layer: :math:`z_A = x_A`, :math:`z_B = f(x_B; \theta(x_A, c))`.

    Both directions cost one evaluation of the conditioner.

    Args:
        conditioner: Network from the passing features to ``len(B) * univariate.size`` parameters.
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

    _passing: Tensor
    _moving: Tensor
    _merge: Tensor

    def __init__(self, conditioner: ResidualNet, univariate: Univariate, *, transformed: Sequence[bool]) -> None:
        super().__init__(len(transformed), conditioner.context)
        moving = [i for i, moves in enumerate(transformed) if moves]
        passing = [i for i, moves in enumerate(transformed) if not moves]
        if not moving:
            raise ValueError("Coupling: expected at least one transformed feature; got none")
        if conditioner.inputs != len(passing) or conditioner.outputs != len(moving) * univariate.size:
            raise ValueError(
                f"Coupling: expected a conditioner from {len(passing)} inputs to "
                f"{len(moving)} x {univariate.size} outputs; got {conditioner.inputs} to {conditioner.outputs}"
            )
        self.conditioner = conditioner
        self.univariate = univariate
        self.transformed = [bool(moves) for moves in transformed]
        self.passing, self.moving = tuple(passing), tuple(moving)
        merge = torch.empty(len(transformed), dtype=torch.long)
        merge[torch.tensor(passing + moving)] = torch.arange(len(transformed))
        self.register_buffer("_passing", torch.tensor(passing, dtype=torch.long), persistent=False)
        self.register_buffer("_moving", torch.tensor(moving, dtype=torch.long), persistent=False)
        self.register_buffer("_merge", merge, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, inverse=True)

    def config(self) -> dict[str, Any]:
        return {
            "conditioner": self.conditioner,
            "univariate": self.univariate,
            "transformed": self.transformed,
        }

    def _transform(self, points: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        self.check_points(points, context)
        context = context if self.context else None
        done = fused.layer(
            self.conditioner,
            self.univariate,
            points,
            context,
            inverse=inverse,
            passing=self.passing,
            moving=self.moving,
        )
        if done is not None:
            return done
        passing, moving = points[..., self._passing], points[..., self._moving]
        # Under autocast the conditioner may answer in half precision; the map is computed in that of the points.
        parameters = self.conditioner(passing, context).to(points.dtype)
        parameters = parameters.unflatten(-1, (-1, self.univariate.size))
        apply = self.univariate.inverse if inverse else self.univariate.forward
        moved, log_derivative = apply(moving, parameters)
        if context is not None:  # it may have brought leading dimensions that the passing part has not seen
            passing = passing.expand(*moved.shape[:-1], passing.shape[-1])
        return torch.cat([passing, moved], dim=-1)[..., self._merge], log_derivative.sum(-1)
