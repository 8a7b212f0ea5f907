"""A mixture of flows: several flows averaged in probability."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.checks import ANY_CONTEXT, check_context, check_rows, check_shape, sample_shape
from pushforward.flows.flow import Flow
from pushforward.flows.state import Part


class Mixture(Part):
    r"""Mixture of flows, :math:`p(x) = \sum_m w_m p_m(x)`.

    The errors of flows fitted with different initial weights differ, so they average out. On small tables this gains
    more log-likelihood than any other change. A mixture has the methods of a ``Flow`` except those of a single
    bijection and path gradients.

    Args:
        members: Flows with the same number of features, and the same context or none; each may embed it in its own way.
        weights: Weight of each member, normalised to sum to 1; equal by default. They are constants, not trained by
            gradients.

    Shape:
        points ``(..., D)``, context ``(..., C)`` broadcasting against them, log-densities ``(...)`` in nats. Dtypes are
        converted, and wrong input is refused, as by a ``Flow``.

    Cost:
        ``log_prob``: one pass of every member. ``sample``: as much as a single member, because each sample is drawn
        from one of them.

    References:
        - Smyth & Wolpert (1999), Linearly combining density estimators via stacking,
          https://doi.org/10.1023/A:1007511322260.

    Example:
        >>> from pushforward.flows import build
        >>> mixture = Mixture([build("maf", features=3, hidden=16) for _ in range(4)])
        >>> mixture.log_prob(torch.zeros(5, 3)).shape, mixture.sample(7).shape
        (torch.Size([5]), torch.Size([7, 3]))
    """

    adopted = ("weights",)

    def __init__(self, members: Sequence[Flow], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not members:
            raise ValueError("Mixture: expected at least one member; got none")
        weights = [1.0] * len(members) if weights is None else list(weights)
        total = math.fsum(weights)
        if len(weights) != len(members) or not all(w > 0.0 for w in weights) or not math.isfinite(total):
            raise ValueError(f"Mixture: expected {len(members)} weights above 0; got {weights}")
        sizes = [member.context for member in members]
        # The size that a member's embedding leaves open is that of the others.
        self.features, self.context = members[0].features, max(sizes) or min(sizes)
        for i, member in enumerate(members):
            if member.features != self.features or member.context not in (0, ANY_CONTEXT, self.context):
                raise ValueError(
                    f"Mixture: expected {self.features} features and a context of 0 or {self.context} in member {i}; "
                    f"got {member.features} and {member.context}"
                )
        self.flows = nn.ModuleList(members)
        self.weights = [w / total for w in weights]

    def adopt(self, **arguments: Any) -> None:
        weights = [float(w) for w in arguments["weights"]]
        if len(weights) != len(self.flows) or not all(0.0 < w <= 1.0 for w in weights):
            raise ValueError(f"Mixture: expected {len(self.flows)} weights above 0; got {weights}")
        self.weights = weights

    @property
    def members(self) -> list[Flow]:
        """The flows of the mixture."""
        return list(self.flows)  # type: ignore[arg-type]  # a ModuleList is one of modules

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``log_prob``."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of points ``(..., D)``, in nats."""
        return self.joint_log_prob(x, context).logsumexp(-1)

    def joint_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of each member's weight times its density, ``(..., members)``."""
        check_shape("Mixture", "points", x, self.features)
        self._check_context(context)
        if context is not None:
            check_rows("Mixture", x, context)
        each = [m.log_prob(x, context if m.context else None) for m in self.members]
        joint = torch.stack(torch.broadcast_tensors(*each), dim=-1)  # members without context have fewer dimensions
        return joint + joint.new_tensor(self.weights).log()

    def latents(self, x: Tensor, context: Tensor | None = None, uniform: Tensor | None = None) -> Tensor:
        r"""Map points ``(..., D)`` to latents ``(..., D)``, standard normal if the points are samples of the mixture.

        Each point is mapped by one member, drawn with its posterior probability :math:`w_m p_m(x) / p(x)`.

        Args:
            x: Points.
            context: Context.
            uniform: Numbers ``(...)`` in [0, 1] by which the members are drawn; random by default.
        """
        posterior = self.joint_log_prob(x, context).softmax(-1)
        if uniform is None:
            uniform = torch.rand(posterior.shape[:-1], dtype=posterior.dtype, device=posterior.device)
        chosen = (uniform.unsqueeze(-1) >= posterior.cumsum(-1)[..., :-1]).sum(-1)
        each = [m.latents(x, context if m.context else None) for m in self.members]
        latents = torch.stack(torch.broadcast_tensors(*each), dim=-2)
        index = chosen[..., None, None].expand(*chosen.shape, 1, self.features)
        return latents.gather(-2, index).squeeze(-2)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples ``(n, ..., D)`` without gradients; arguments as for ``rsample``."""
        return self.rsample(n, context)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples with gradients to the parameters of the members; see ``Flow.rsample``.

        Args:
            n: Number of samples, or a shape of leading dimensions.
            context: Context ``(..., C)``; its leading dimensions come after those of ``n``.

        Returns:
            Samples ``(n, ..., D)``.
        """
        self._check_context(context)
        lead = sample_shape("Mixture", n)
        contexts = None
        if context is not None:
            lead = (*lead, *context.shape[:-1])
            contexts = context.expand(*lead, -1).reshape(-1, context.shape[-1])
        base = self.members[0].base
        uniform = torch.rand(math.prod(lead), dtype=base.dtype, device=base.device)
        chosen = torch.bucketize(uniform, uniform.new_tensor(self.weights).cumsum(-1)[:-1], right=True)
        drawn, places = [], []
        for m, member in enumerate(self.members):
            place = (chosen == m).nonzero().squeeze(-1)
            seen = contexts if member.context else None
            drawn.append(member.rsample(len(place)) if seen is None else member.rsample((), seen[place]))
            places.append(place)
        back = torch.empty_like(chosen).scatter_(0, torch.cat(places), torch.arange(len(chosen), device=chosen.device))
        return torch.cat(drawn)[back].reshape(*lead, self.features)

    def rsample_and_log_prob(
        self, n: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples ``(n, ..., D)`` with their log-densities ``(n, ...)``. Cost: a pass of every member."""
        x = self.rsample(n, context)
        return x, self.log_prob(x, context)

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples and their log-densities without gradients."""
        return self.rsample_and_log_prob(n, context)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this mixture (without the weights of its networks)."""
        return {"members": self.members, "weights": self.weights}

    def _check_context(self, context: Tensor | None) -> None:
        check_context("Mixture", context, self.context)


Model = Flow | Mixture
"""A density model: a flow or a mixture of flows."""


def members_of(model: Model) -> list[Flow]:
    """The flows of a density model: the members of a mixture, or the flow alone."""
    return model.members if isinstance(model, Mixture) else [model]
