r"""Several flows averaged in probability: a density as exact as each of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.checks import check_shape
from pushforward.flows.flow import Flow


class Mixture(nn.Module):
    r"""Mixture of flows, :math:`p(x) = \sum_m w_m p_m(x)`.

    What members that were fitted alike have learned by chance differs, and averages out; what they agree on stays. On
    small tables that is worth more than any other change. It has the methods of a ``Flow`` but for those that belong to
    a single bijection, and for path gradients.

    Args:
        members: Flows of the same features and context.
        weights: Weight of each; equal ones by default. Constants: they are not trained by gradients.

    Shape:
        points ``(..., D)``, context ``(..., C)`` broadcasting against them, log-densities ``(...)`` in nats.

    Cost:
        That of all members for ``log_prob``; ``sample`` that of a single one, divided among them.

    References:
        - Smyth & Wolpert (1999), Linearly combining density estimators via stacking,
          https://doi.org/10.1023/A:1007511322260.

    Example:
        >>> from pushforward.flows import build
        >>> ensemble = Mixture([build("maf", features=3, hidden=16) for _ in range(4)])
        >>> ensemble.log_prob(torch.zeros(5, 3)).shape, ensemble.sample(7).shape
        (torch.Size([5]), torch.Size([7, 3]))
    """

    def __init__(self, members: Sequence[Flow], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not members:
            raise ValueError("Mixture: expected at least one member; got none")
        weights = [1.0] * len(members) if weights is None else list(weights)
        total = math.fsum(weights)
        if len(weights) != len(members) or not all(w > 0.0 for w in weights) or not math.isfinite(total):
            raise ValueError(f"Mixture: expected {len(members)} weights above 0; got {weights}")
        first = members[0]
        self.features, self.context = first.features, max(member.context for member in members)
        for i, member in enumerate(members):
            if member.features != self.features or member.context not in (0, self.context):
                raise ValueError(
                    f"Mixture: expected {self.features} features and a context of 0 or {self.context} in member {i}; "
                    f"got {member.features} and {member.context}"
                )
        self.flows = nn.ModuleList(members)
        self.weights = [w / total for w in weights]

    @property
    def members(self) -> list[Flow]:
        """The flows."""
        return list(self.flows)  # type: ignore[arg-type]  # a ModuleList forgets what its members are

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density: the same as ``log_prob``."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of points ``(..., D)``, in nats."""
        return self.joint_log_prob(x, context).logsumexp(-1)

    def joint_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Logarithms ``(..., members)`` of each member's weight times its density."""
        self._check(context)
        each = [m.log_prob(x, context if m.context else None) for m in self.members]
        joint = torch.stack(torch.broadcast_tensors(*each), dim=-1)  # some members may not see the context
        return joint + joint.new_tensor(self.weights).log()

    def latents(self, x: Tensor, context: Tensor | None = None, share: Tensor | None = None) -> Tensor:
        r"""The noise ``(..., D)`` behind points ``(..., D)``: standard normal if the points are of this law.

        Each point is mapped by a member drawn from its posterior :math:`w_m p_m(x) / p(x)`: that is the member it would
        have been drawn from.

        Args:
            x: Points.
            context: Context.
            share: Numbers ``(...)`` between 0 and 1 that draw the members; random ones by default.
        """
        posterior = self.joint_log_prob(x, context).softmax(-1)
        if share is None:
            share = torch.rand(posterior.shape[:-1], dtype=posterior.dtype, device=posterior.device)
        chosen = (share.unsqueeze(-1) >= posterior.cumsum(-1)[..., :-1]).sum(-1)
        each = [m.latents(x, context if m.context else None) for m in self.members]
        noise = torch.stack(torch.broadcast_tensors(*each), dim=-2)
        index = chosen[..., None, None].expand(*chosen.shape, 1, self.features)
        return noise.gather(-2, index).squeeze(-2)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw points ``(n, ..., D)`` without gradients; arguments as ``rsample``."""
        return self.rsample(n, context)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw points that carry gradients to the members' parameters; see ``Flow.rsample``.

        Args:
            n: Number of points, or a shape of leading dimensions.
            context: Context ``(..., C)``; its leading dimensions come after those of ``n``.

        Returns:
            Points ``(n, ..., D)``.
        """
        self._check(context)
        lead = (n,) if isinstance(n, int) else tuple(n)
        given = None
        if context is not None:
            lead = (*lead, *context.shape[:-1])
            given = context.expand(*lead, self.context).reshape(-1, self.context)
        base = self.members[0].base
        share = torch.rand(math.prod(lead), dtype=base.dtype, device=base.device)
        chosen = torch.bucketize(share, share.new_tensor(self.weights).cumsum(-1)[:-1], right=True)
        drawn, places = [], []
        for m, member in enumerate(self.members):
            place = (chosen == m).nonzero().squeeze(-1)
            own = given if member.context else None
            drawn.append(member.rsample(len(place)) if own is None else member.rsample((), own[place]))
            places.append(place)
        back = torch.empty_like(chosen).scatter_(0, torch.cat(places), torch.arange(len(chosen), device=chosen.device))
        return torch.cat(drawn)[back].reshape(*lead, self.features)

    def rsample_and_log_prob(
        self, n: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw points ``(n, ..., D)`` with their log-densities ``(n, ...)``, which take a pass of all members."""
        x = self.rsample(n, context)
        return x, self.log_prob(x, context)

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int | tuple[int, ...] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same without gradients."""
        return self.rsample_and_log_prob(n, context)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this ensemble (without its weights)."""
        return {"members": self.members, "weights": self.weights}

    def _check(self, context: Tensor | None) -> None:
        if (context is None) == (self.context == 0):
            if context is not None:
                check_shape("Mixture", "context", context, self.context)
            return
        expected = f"context of shape (..., {self.context})" if self.context else "no context"
        found = "none" if context is None else f"one of shape {tuple(context.shape)}"
        raise ValueError(f"Mixture: expected {expected}; got {found}")


Model = Flow | Mixture
"""What stands for a density: a flow, or an ensemble of them."""


def members_of(model: Model) -> list[Flow]:
    """The flows that a density is made of."""
    return model.members if isinstance(model, Mixture) else [model]
