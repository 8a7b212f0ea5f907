r"""An autoregressive base: a masked network gives each conditional as a mixture of Gaussians (MADE-MoG)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import ndtri

from pushforward.flows.bases.base import Base
from pushforward.flows.bases.gaussian import Gaussian
from pushforward.flows.bases.normal import normal_cdf, normal_from_tails
from pushforward.flows.bijections.base import saturate
from pushforward.flows.checks import at_least_single, check_shape
from pushforward.flows.kernels.description import Description, description_of, evaluate, is_usable
from pushforward.flows.kernels.layers import Map
from pushforward.flows.networks.mapped import describe_layer
from pushforward.flows.networks.masked import MaskedConditioner
from pushforward.flows.univariate.base import Univariate

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)
MOST_COMPONENTS = 500
"""Largest number of components per feature; the kernels in C keep a few numbers of each on the stack."""

_MOST_LOG_SCALE = 30.0
"""Largest log-scale: far from the data the outputs of a network grow without bound, and their exponential overflows."""

_WITHIN = 0.7
"""Initial standard deviation of each component; the rest of the variance of 1 lies between the components."""


@dataclass(frozen=True)
class MixtureConditional(Univariate):
    r"""Mixture of Gaussians of one feature, :math:`f(y) = \sum_k w_k N(y; m_k, s_k^2)`.

    It has the interface of a univariate map, so that the kernels can treat it as one, but it is not a bijection:
    ``forward`` returns the value unchanged with its log-density. ``inverse`` turns a uniform number into a sample, with
    minus its log-density: the number chooses a component, and its position within the component's share of [0, 1] gives
    the quantile. Parameters are logits, locations, and logarithms of the scales less ``least_scale``.

    Args:
        components: Number of components :math:`K`.
        least_scale: Smallest scale. Where values repeat, the likelihood would grow without bound as a scale goes to 0.
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
        # The last end is 1 up to rounding; scaling by it never chooses a component of weight 0.
        z = z.unsqueeze(-1) * ends[..., -1:]
        chosen = (z >= ends[..., :-1]).sum(-1, keepdim=True)
        start = F.pad(ends[..., :-1], (1, 0)).gather(-1, chosen)
        weight = ends.gather(-1, chosen) - start
        # At least half a step of the random numbers, because the quantile of 0 is infinite.
        eps = torch.finfo(z.dtype).eps
        least = (0.25 * eps / weight).clamp(max=0.5)
        quantile = torch.maximum((z - start) / weight, least).clamp(max=1.0 - 0.5 * eps)
        noise = ndtri(at_least_single(quantile)).to(z.dtype)
        x = (locations.gather(-1, chosen) + scales.gather(-1, chosen) * noise).squeeze(-1)
        return x, -self.forward(x, parameters)[1]

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, locations and scales, ``(..., K)`` each."""
        logits, locations, raw = parameters.chunk(3, dim=-1)
        return logits, locations, raw.clamp(max=_MOST_LOG_SCALE).exp() + self.least_scale

    def tail_probabilities(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``(...)`` of a value below and of one above ``x``; the smaller one is accurate."""
        logits, locations, scales = self.split(parameters)
        scaled = (x.unsqueeze(-1) - locations) / scales
        weights = logits.softmax(-1)
        return (weights * normal_cdf(scaled)).sum(-1), (weights * normal_cdf(-scaled)).sum(-1)

    def kernel(self) -> Map:
        return Map("mixture", bins=self.components, bound=self.least_scale)


class AutoregressiveMixture(Base):
    r"""Autoregressive distribution :math:`p(z) = \prod_d f(y_d \mid y_{<d})`, each :math:`f` a mixture of Gaussians.

    Points are first mapped to the coordinates :math:`y` of a Gaussian, ``frame``, by :math:`z = m + L y` with a
    triangular :math:`L`. The network works at scales of 1 and learns the difference from that Gaussian, from which the
    distribution hardly differs after ``initialize``. As the base of a flow it is the mixture head of MAF-MoG; with at
    most a permutation in front it is MADE-MoG.

    Samples have implicit reparameterization gradients, feature by feature, as in ``GaussianMixture``; only first
    derivatives are right.

    Args:
        conditioner: Masked network with ``3 * components`` outputs a feature.
        frame: A Gaussian with a full or diagonal covariance; its context changes location and scales.
        least_scale: Smallest scale of a component, in the coordinates of the Gaussian.

    Cost:
        ``log_prob``: one evaluation of the network. ``sample``: about as much, by an incremental pass.

    References:
        - Uria, Murray & Larochelle (2013), RNADE, https://arxiv.org/abs/1306.0186.
        - Papamakarios et al. (2017), Masked Autoregressive Flow, https://arxiv.org/abs/1705.07057, section 3.
        - Nash & Durkan (2019), Autoregressive Energy Machines, https://arxiv.org/abs/1904.05626 (residual blocks).

    Example:
        >>> from pushforward.flows import MaskedResidualNet
        >>> net = MaskedResidualNet(3, 3 * 5, hidden=16)
        >>> base = AutoregressiveMixture(net, Gaussian(3, covariance="full"))
        >>> base.log_prob(torch.zeros(7, 3)).shape, base.sample(7).shape
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
            self._initialize_outputs(conditioner.last.bias.view(self.features, 3, components))

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Match a mean ``(D,)`` and a covariance ``(D, D)`` before training."""
        self.frame.initialize(mean, covariance)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        seen = self._checked_context(context)
        y, log_scale = self.frame.latents_and_log_scale(z, context)
        return self._log_density(saturate(y), seen) - log_scale.sum(-1)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        seen = self._checked_context(context)
        lead = self.lead(n, seen)
        expanded = None if seen is None else seen.expand(*lead, self.context)
        with torch.no_grad():
            y = self._draw(lead, expanded)
        sources = (*self.parameters(), *(() if seen is None else (seen,)))
        if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
            y = self._with_implicit_gradients(y, expanded)
        return self.frame.from_noise(y, context)

    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        seen = self._checked_context(context)
        y = self.frame.latents(z, context)
        below, above = self.conditional.tail_probabilities(y, self.conditioner(y, seen).to(y.dtype))
        return normal_from_tails(below, above)

    def config(self) -> dict[str, Any]:
        return {
            "conditioner": self.conditioner,
            "frame": self.frame,
            "least_scale": self.conditional.least_scale,
        }

    def _checked_context(self, context: Tensor | None) -> Tensor | None:
        """The context that the network sees; None if it sees none."""
        if not self.context:
            return None
        if context is None:
            raise ValueError(f"AutoregressiveMixture: expected context of shape (..., {self.context}); got none")
        check_shape("AutoregressiveMixture", "context", context, self.context)
        return context

    def _log_density(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Log-density ``(...)`` in the coordinates of the Gaussian."""
        if is_usable(y) and (done := evaluate(description_of(self), y, context)):
            return done[1]
        parameters = self.conditioner(y, context).to(y.dtype)
        log_density: Tensor = self.conditional.forward(y, parameters)[1].sum(-1)
        return log_density

    def describe(self) -> Description | None:
        """Describe the network and its conditionals for the kernels."""
        return describe_layer(self, self.conditioner, self.conditional, self.features)

    def _draw(self, lead: tuple[int, ...], context: Tensor | None) -> Tensor:
        """Draw samples ``(*lead, D)`` in the coordinates of the Gaussian, without gradients."""
        uniform = torch.rand(*lead, self.features, dtype=self.dtype, device=self.device)
        if is_usable(uniform) and (done := evaluate(description_of(self), uniform, context, inverse=True)):
            return done[0]
        points = uniform.reshape(-1, self.features)
        flat = None if context is None else context.reshape(-1, self.context)
        y, _ = self.conditioner.incremental(points, flat).solve(self.conditional, points)
        return y.reshape(*lead, self.features)

    def _with_implicit_gradients(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Attach implicit reparameterization gradients to samples, in the coordinates of the Gaussian."""
        flat = None if context is None else context.reshape(-1, self.context)
        points = y.reshape(-1, self.features)
        network = self.conditioner.incremental(points, flat)
        values: list[Tensor] = []
        for value in points.unbind(-1):
            parameters = network.parameters().to(y.dtype)
            density = self.conditional.forward(value, parameters)[1].exp().detach()
            below, above = self.conditional.tail_probabilities(value, parameters)
            # In the upper half use minus the survival function: same derivatives, but accurate in the upper tail.
            probability = torch.where(below.detach() > 0.5, -above, below)
            value = value - (probability - probability.detach()) / density
            values.append(value)
            network.append(value)
        return torch.stack(values, -1).reshape(y.shape)

    def _initialize_outputs(self, bias: Tensor) -> None:
        """Set equal weights, locations at normal quantiles and scales below 1: nearly a standard Gaussian."""
        components = self.conditional.components
        within = _WITHIN if components > 1 else 1.0
        if components > 1:
            quantiles = ndtri((torch.arange(components, dtype=torch.float64) + 0.5) / components)
            bias[:, 1] = quantiles * (math.sqrt(1.0 - within**2) / quantiles.square().mean().sqrt())
        bias[:, 2] = math.log(within - self.conditional.least_scale)
