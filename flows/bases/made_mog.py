r"""A law whose conditionals are mixtures of Gaussians, steered by a masked network: MADE-MoG, or RNADE with one net."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import ndtri

from pushforward.flows.bases.base import Base
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.normal import noise_between, normal_cdf
from pushforward.flows.bijections import fused
from pushforward.flows.checks import check_shape
from pushforward.flows.kernels import native
from pushforward.flows.networks.masked import MaskedConditioner
from pushforward.flows.univariate.base import Univariate

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)
MOST_COMPONENTS = 500
"""Of one feature; the kernels in C keep a few numbers of each on the stack."""

_MOST_LOG_SCALE = 30.0
"""Beyond it scales grow no more: far from the data a network's numbers grow without bound, and e to them overflows."""

_WITHIN = 0.7
"""Standard deviation of each component at first; the rest of the variance of 1 lies between the components."""


@dataclass(frozen=True)
class MixtureConditional(Univariate):
    r"""Mixture of Gaussians of one feature, :math:`f(y) = \sum_k w_k N(y; m_k, s_k^2)`.

    It stands where a layer has its univariate map, and is none: ``forward`` leaves the value as it is and returns its
    log-density, ``inverse`` draws a value by a number between 0 and 1 (which chooses a component; what is left of it is
    the place within), with minus its log-density. Parameters are logits, locations, and logarithms of the scales beyond
    the least one.

    Args:
        components: Number of components :math:`K`.
        least_scale: Smallest scale. Where values repeat, the likelihood grows without bound as a scale goes to zero.
    """

    components: int
    least_scale: float = 1e-3

    def __post_init__(self) -> None:
        if not 1 <= self.components <= MOST_COMPONENTS:
            raise ValueError(f"MixtureConditional: expected 1 to {MOST_COMPONENTS} components; got {self.components}")
        if not self.least_scale > 0.0:
            raise ValueError(f"MixtureConditional: expected least_scale above 0; got {self.least_scale}")

    @property
    def size(self) -> int:
        return 3 * self.components

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        logits, locations, scales = self.split(parameters)
        scaled = (x.unsqueeze(-1) - locations) / scales
        joint = logits - 0.5 * scaled.square() - scales.log()
        log_density = joint.logsumexp(-1) - logits.logsumexp(-1) - _LOG_ROOT_2PI
        return x.expand_as(log_density), log_density

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        logits, locations, scales = self.split(parameters)
        ends = logits.softmax(-1).cumsum(-1)
        # The last end is 1 but for rounding: in its units no component without weight is chosen.
        z = z.unsqueeze(-1) * ends[..., -1:]
        chosen = (z >= ends[..., :-1]).sum(-1, keepdim=True)
        start = F.pad(ends[..., :-1], (1, 0)).gather(-1, chosen)
        weight = ends.gather(-1, chosen) - start
        # Half a step of the random numbers: without it the first one would stand for a point infinitely far out.
        eps = torch.finfo(z.dtype).eps
        least = (0.25 * eps / weight).clamp(max=0.5)
        share = torch.maximum((z - start) / weight, least).clamp(max=1.0 - 0.5 * eps)
        noise = ndtri(share)
        x = (locations.gather(-1, chosen) + scales.gather(-1, chosen) * noise).squeeze(-1)
        return x, -self.forward(x, parameters)[1]

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, locations and scales, ``(..., K)`` each."""
        logits, locations, raw = parameters.chunk(3, dim=-1)
        return logits, locations, raw.clamp(max=_MOST_LOG_SCALE).exp() + self.least_scale

    def below(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``(...)`` of a value below, and of one above; the smaller has all its digits."""
        logits, locations, scales = self.split(parameters)
        scaled = (x.unsqueeze(-1) - locations) / scales
        weights = logits.softmax(-1)
        return (weights * normal_cdf(scaled)).sum(-1), (weights * normal_cdf(-scaled)).sum(-1)

    def kernel(self) -> native.Map:
        return native.Map(kind=native.MIXTURE, bins=self.components, bound=self.least_scale)


class AutoregressiveMixture(Base):
    r"""Law :math:`p(z) = \prod_d f(y_d \mid y_{<d})` with mixtures of Gaussians for conditionals.

    The points are first brought to the frame of a Gaussian, :math:`z = m + L y` with triangular :math:`L`, so that the
    network learns what a Gaussian does not know, at scales of one; ``initialize`` makes the law nearly that Gaussian.
    As the base of a flow it is the mixture head of MAF-MoG; with nothing but a permutation it is a density by itself.

    A sample's gradient is that of the implicit function, feature by feature, as in ``GaussianMixture``; it is a first
    derivative.

    Args:
        conditioner: Masked network with ``3 * components`` outputs a feature.
        frame: A Gaussian of full or diagonal covariance; its context moves location and scales.
        least_scale: Smallest scale of a component, in the frame's units.

    Cost:
        ``log_prob``: one evaluation of the network. ``sample``: about as much, by an incremental pass.

    References:
        - Uria, Murray & Larochelle (2013), RNADE, https://arxiv.org/abs/1306.0186.
        - Papamakarios et al. (2017), Masked Autoregressive Flow, https://arxiv.org/abs/1705.07057, section 3.
        - Nash & Durkan (2019), Autoregressive Energy Machines, https://arxiv.org/abs/1904.05626 (residual blocks).

    Example:
        >>> from pushforward.flows import MaskedResidualNet
        >>> net = MaskedResidualNet(3, 3 * 5, hidden=16)
        >>> law = AutoregressiveMixture(net, Gaussian(3, covariance="full"))
        >>> law.log_prob(torch.zeros(7, 3)).shape, law.sample(7).shape
        (torch.Size([7]), torch.Size([7, 3]))
    """

    def __init__(self, conditioner: MaskedConditioner, frame: Gaussian, least_scale: float = 1e-3) -> None:
        super().__init__(conditioner.features, conditioner.context)
        components, rest = divmod(conditioner.outputs_per_feature, 3)
        if rest:
            raise ValueError(
                f"AutoregressiveMixture: expected a conditioner with three outputs a component and feature; "
                f"got {conditioner.outputs_per_feature} outputs a feature"
            )
        if frame.features != self.features or frame.context not in (0, self.context) or frame.rank:
            raise ValueError(
                f"AutoregressiveMixture: expected a frame of {self.features} features, full or diagonal; got "
                f"{frame.features} features, {frame.covariance}"
            )
        if not 0.0 < least_scale < _WITHIN:
            raise ValueError(
                f"AutoregressiveMixture: expected least_scale above 0 and below {_WITHIN}; got {least_scale}"
            )
        self.conditioner, self.frame = conditioner, frame
        self.conditional = MixtureConditional(components, least_scale)
        with torch.no_grad():
            self._spread(conditioner.last.bias.view(self.features, 3, components))

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Bring a fresh law to a mean ``(D,)`` and covariance ``(D, D)``."""
        self.frame.initialize(mean, covariance)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        own = self._own(context)
        y, log_scale = self.frame.standardize_terms(z, context)
        return self._log_density(y, own) - log_scale.sum(-1)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        own = self._own(context)
        lead = self.lead(n, own)
        spread = None if own is None else own.expand(*lead, self.context)
        with torch.no_grad():
            y = self._draw(lead, spread)
        sources = (*self.parameters(), *(() if own is None else (own,)))
        if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
            y = self._follow(y, spread)
        return self.frame.push(y, context)

    def standardize(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        own = self._own(context)
        y = self.frame.standardize(z, context)
        below, above = self.conditional.below(y, self.conditioner(y, own).to(y.dtype))
        return noise_between(below, above)

    def config(self) -> dict[str, Any]:
        return {
            "conditioner": self.conditioner,
            "frame": self.frame,
            "least_scale": self.conditional.least_scale,
        }

    def _own(self, context: Tensor | None) -> Tensor | None:
        if not self.context:
            return None
        if context is None:
            raise ValueError(f"AutoregressiveMixture: expected context of shape (..., {self.context}); got none")
        check_shape("AutoregressiveMixture", "context", context, self.context)
        return context

    def _log_density(self, y: Tensor, context: Tensor | None) -> Tensor:
        if done := fused.layer(self.conditioner, self.conditional, y, context):
            return done[1]
        parameters = self.conditioner(y, context).to(y.dtype)
        log_density: Tensor = self.conditional.forward(y, parameters)[1].sum(-1)
        return log_density

    def _draw(self, lead: tuple[int, ...], context: Tensor | None) -> Tensor:
        share = torch.rand(*lead, self.features, dtype=self.dtype, device=self.device)
        if done := fused.layer(self.conditioner, self.conditional, share, context, inverse=True):
            return done[0]
        points = share.reshape(-1, self.features)
        flat = None if context is None else context.reshape(-1, self.context)
        y, _ = self.conditioner.incremental(points, flat).solve(self.conditional, points)
        return y.reshape(*lead, self.features)

    def _follow(self, y: Tensor, context: Tensor | None) -> Tensor:
        """The same points with the gradients of the implicit function."""
        flat = None if context is None else context.reshape(-1, self.context)
        points = y.reshape(-1, self.features)
        following = self.conditioner.incremental(points, flat)
        moved: list[Tensor] = []
        for value in points.unbind(-1):
            parameters = following.parameters().to(y.dtype)
            density = self.conditional.forward(value, parameters)[1].exp().detach()
            below, above = self.conditional.below(value, parameters)
            # Minus what lies above has the same derivatives as what lies below, and keeps the digits in the upper tail.
            share = torch.where(below.detach() > 0.5, -above, below)
            value = value - (share - share.detach()) / density
            moved.append(value)
            following.append(value)
        return torch.stack(moved, -1).reshape(y.shape)

    def _spread(self, bias: Tensor) -> None:
        """Equal weights, locations at normal quantiles, scales below one: nearly a standard Gaussian."""
        components = self.conditional.components
        within = _WITHIN if components > 1 else 1.0
        if components > 1:
            nodes = ndtri((torch.arange(components, dtype=torch.float64) + 0.5) / components)
            bias[:, 1] = nodes * (math.sqrt(1.0 - within**2) / nodes.square().mean().sqrt())
        bias[:, 2] = math.log(within - self.conditional.least_scale)
