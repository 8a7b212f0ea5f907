"""A Bayesian neural network as the base of a conditional flow."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from torch.special import log_ndtr

from pushforward.common.text import unknown_name
from pushforward.flows.bases.base import Base
from pushforward.flows.bases.normal import normal_from_log_tails
from pushforward.flows.bayesian.network import WeightedNetwork
from pushforward.flows.bayesian.posterior import POSTERIORS
from pushforward.flows.checks import at_least_single, check_at_least, check_context
from pushforward.flows.flow import Flow
from pushforward.flows.random_state import seeded

Noise = Literal["learned", "heteroscedastic"]
Prior = Literal["fixed", "layers", "inputs"]

_LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)
_NUMBERS_A_PASS = 4_000_000  # most activations of the widest layer, or log-densities, at a time
_START_SCALE = 0.05  # initial standard deviations of the posterior, in units of the prior's
_START_NOISE = 0.3  # initial standard deviation of the noise, in units of the responses'


class BayesianNetwork(Base):
    r"""Regression by a fully connected network with a posterior over all of its weights.

    Responses are :math:`y = f_w(c) + \sigma \epsilon`, independent of each other given the weights :math:`w`. Weights
    have the prior :math:`N(0, s^2 / \text{inputs})` layer by layer, and biases :math:`N(0, s^2)`. The predictive
    density is the mixture over stored samples of the posterior,

    .. math:: p(y \mid c) = \frac1S \sum_{k=1}^S N(y; f_{w_k}(c), \sigma^2) , \quad w_k \sim q(w) .

    It is the base of a flow; the bijection and the embedding of that flow standardise responses and inputs. The
    objective ``train.objectives.evidence.Evidence`` fits the posterior :math:`q`, the noise and the prior scales, and
    draws the weights anew whenever it validates, so that the density that was validated is the one that is kept.

    Args:
        features: Number of responses :math:`D`.
        context: Number of inputs :math:`C`, at least 1.
        posterior: The posterior: a flow over all weights, in units of their fan-in (see ``WeightedNetwork``). It should
            start narrower than the prior, because scales shrink slowly.
        hidden: Widths of the hidden layers of rectified linear units; empty for a linear model.
        noise: ``"learned"`` for one standard deviation for each response; ``"heteroscedastic"`` to multiply it by
            further outputs of the network; or a known one, in units of the responses' standard deviations.
        prior: Which prior scales are learned: ``"layers"`` for one for the weights and one for the biases of each
            layer, ``"inputs"`` for one for each input in addition, ``"fixed"`` for none.
        prior_scale: The scale :math:`s`, or its initial value.
        samples: Number :math:`S` of weight samples of the predictive density. All weights are zero until
            ``draw_weights`` is called.

    Attributes:
        weights: Samples of the posterior ``(samples, size)``.

    Cost:
        ``log_prob``: ``samples`` passes of the network for each row of context. ``sample``: one pass a draw.

    References:
        - Blundell et al. (2015), Weight Uncertainty in Neural Networks, https://arxiv.org/abs/1505.05424.
        - Louizos & Welling (2017), https://arxiv.org/abs/1703.01961: flows over weights.
        - Neal (1996), Bayesian Learning for Neural Networks, section 4.3: a prior scale for each input.

    Example:
        >>> base = build_bayesian_network(features=1, context=3, hidden=(5,))
        >>> base.log_prob(torch.zeros(7, 1), torch.zeros(7, 3)).shape, base.sample(2, torch.zeros(7, 3)).shape
        (torch.Size([7]), torch.Size([2, 7, 1]))
    """

    location: Tensor
    log_scale: Tensor
    log_noise: Tensor
    log_prior_scales: Tensor
    groups: Tensor
    weights: Tensor
    free: ClassVar[tuple[str, ...]] = ("prior_scale",)

    def __init__(
        self,
        features: int,
        context: int,
        posterior: Flow,
        *,
        hidden: Sequence[int] = (50,),
        noise: Noise | float = "learned",
        prior: Prior = "fixed",
        prior_scale: float = 2.0,
        samples: int = 256,
    ) -> None:
        super().__init__(features, context)
        self.network = _network(features, context, hidden, noise)
        check_at_least("BayesianNetwork", 1, samples=samples)
        if prior not in get_args(Prior):
            raise ValueError(f"BayesianNetwork: {unknown_name('prior', prior, get_args(Prior))}")
        _check_positive(prior_scale=prior_scale)
        if posterior.features != self.network.size or posterior.context:
            raise ValueError(
                f"BayesianNetwork: expected a posterior of {self.network.size} features without context; "
                f"got {posterior.features} and a context of {posterior.context}"
            )
        self.hidden, self.noise, self.prior, self.prior_scale = list(hidden), noise, prior, prior_scale
        # First, because ``like`` of a base is the first of its own tensors.
        self.register_buffer("location", torch.zeros(features))
        self.register_buffer("log_scale", torch.zeros(features))
        known = not isinstance(noise, str)
        start = torch.full((features,), math.log(noise if not isinstance(noise, str) else _START_NOISE))
        self.add_tensor("log_noise", start, trainable=not known)
        groups = self.network.groups(each_input=prior == "inputs")
        self.set_constant("groups", groups)
        scales = torch.full((int(groups[-1]) + 1,), math.log(prior_scale))
        self.add_tensor("log_prior_scales", scales, trainable=prior != "fixed")
        self.posterior = posterior
        self.register_buffer("weights", torch.zeros(samples, self.network.size))

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Take a mean ``(D,)`` and the variances of a covariance ``(D, D)`` as the unit of the responses."""
        self.check_moments(mean, covariance)
        self.location.copy_(mean)
        self.log_scale.copy_(0.5 * covariance.diagonal().log())

    @torch.no_grad()
    def draw_weights(self, seed: int = 0) -> None:
        """Draw the weights of the predictive density from the posterior; equal seeds give equal weights."""
        with seeded(seed, self.device):
            self.weights.copy_(self.posterior.sample(len(self.weights)))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        # Draws of many rows are many points: in bounded memory.
        parts = self.weights.split(max(1, _NUMBERS_A_PASS // max(1, z.numel())))
        sums = [self.log_likelihood(z, context, part).logsumexp(0) for part in parts]
        return torch.stack(sums).logsumexp(0) - math.log(len(self.weights))

    def log_likelihood(self, z: Tensor, context: Tensor | None, weights: Tensor) -> Tensor:
        """Log-density ``(s, ...)`` of points ``(..., D)`` given context ``(..., C)`` and each of the weights.

        Args:
            z: Points.
            context: Context.
            weights: Weights ``(s, size)``.
        """
        scaled, log_sd = self._residuals(z, context, weights)
        log_densities: Tensor = -(0.5 * scaled.square() + log_sd + _LOG_ROOT_2PI).sum(-1)
        return log_densities

    def log_prior(self, weights: Tensor) -> Tensor:
        """Log-density ``(s,)`` of weights ``(s, size)`` under the prior, in nats."""
        log_scales = self.log_prior_scales[self.groups]
        log_densities: Tensor = -(0.5 * (weights * (-log_scales).exp()).square() + log_scales + _LOG_ROOT_2PI).sum(-1)
        return log_densities

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples ``(n, ..., D)``, each with one of the weights; gradients reach the noise alone."""
        context = self._checked(context)
        lead = self.lead(n, context)
        rows = context.expand(*lead, self.context).reshape(-1, self.context)
        chosen = torch.randint(len(self.weights), (len(rows),), device=self.device)
        noise = torch.randn(len(rows), self.features, dtype=self.dtype, device=self.device)
        order = chosen.argsort()  # together, the draws of each weight sample take one pass
        parts = rows[order].split(torch.bincount(chosen, minlength=len(self.weights)).tolist())
        outputs = [self.network(part, w[None])[0] for part, w in zip(parts, self.weights, strict=True)]
        mean, log_sd = self._moments(torch.cat(outputs)[order.argsort()])
        return (mean + log_sd.exp() * noise).reshape(*lead, self.features)

    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        residuals, log_sd = self._residuals(z, context, self.weights)
        log_weights = residuals.new_zeros(len(self.weights), *[1] * (residuals.dim() - 2))
        latents = []
        for scaled, log_scale in zip(residuals.unbind(-1), log_sd.unbind(-1), strict=True):
            # Given the responses before it, each response is again a mixture. Logarithms, because the noise may be
            # small: an outlier is easily farther than 40 standard deviations from all components.
            log_shares = log_weights.log_softmax(0)
            below, above = ((log_shares + log_ndtr(side * at_least_single(scaled))).logsumexp(0) for side in (1, -1))
            latents.append(normal_from_log_tails(below, above).to(z.dtype))
            log_weights = log_weights - 0.5 * scaled.square() - log_scale
        return torch.stack(latents, -1)

    def config(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "context": self.context,
            "posterior": self.posterior,
            "hidden": self.hidden,
            "noise": self.noise,
            "prior": self.prior,
            "prior_scale": self.prior_scale,
            "samples": len(self.weights),
        }

    def _residuals(self, z: Tensor, context: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Points in units of the noise, and its log standard deviations, ``(s, ..., D)``."""
        self.check_points(z)
        context = self._checked(context)
        rows = context.reshape(-1, self.context)
        samples_a_pass = max(1, _NUMBERS_A_PASS // (max(self.network.widths) * max(1, len(rows))))
        outputs = torch.cat([self.network(rows, part) for part in weights.split(samples_a_pass)])
        between = [1] * (z.dim() - context.dim())  # leading dimensions that only the points have
        lead = (len(weights), *between, *context.shape[:-1])
        mean, log_sd = self._moments(outputs.reshape(*lead, outputs.shape[-1]))
        return (z - mean) * (-log_sd).exp(), log_sd

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations ``(..., D)`` from outputs of the network."""
        mean = self.location + self.log_scale.exp() * outputs[..., : self.features]
        log_sd = self.log_scale + self.log_noise
        if self.noise == "heteroscedastic":
            return mean, log_sd + outputs[..., self.features :]
        return mean, log_sd.expand_as(mean)

    def _checked(self, context: Tensor | None) -> Tensor:
        check_context("BayesianNetwork", context, self.context)
        return cast(Tensor, context)


def build_bayesian_network(
    features: int,
    context: int,
    posterior: str = "flow",
    *,
    hidden: Sequence[int] = (50,),
    noise: Noise | float = "learned",
    prior: Prior = "fixed",
    prior_scale: float = 2.0,
    samples: int = 256,
) -> BayesianNetwork:
    """Build a Bayesian network with a posterior that starts narrow, around weights drawn from the prior.

    Args:
        features: Number of responses.
        context: Number of inputs.
        posterior: ``"mean-field"`` for a factorised Gaussian, ``"flow"`` for one with dependent weights; see
            ``flows.bayesian.posterior``.
        hidden: As for ``BayesianNetwork``, as are all the others.
        noise: Noise.
        prior: Learned scales of the prior.
        prior_scale: Scale of the prior.
        samples: Weight samples of the predictive density.

    Raises:
        ValueError: If a name is unknown (the nearest is named) or a size is out of range.
    """
    if posterior not in POSTERIORS:
        raise ValueError(f"build_bayesian_network: {unknown_name('posterior', posterior, tuple(POSTERIORS))}")
    _check_positive(prior_scale=prior_scale)
    network = _network(features, context, hidden, noise)
    location = prior_scale * torch.randn(network.size) * network.initial_scales()
    flow = POSTERIORS[posterior](location, torch.full((network.size,), _START_SCALE * prior_scale))
    return BayesianNetwork(
        features,
        context,
        flow,
        hidden=hidden,
        noise=noise,
        prior=prior,
        prior_scale=prior_scale,
        samples=samples,
    )


def _network(features: int, context: int, hidden: Sequence[int], noise: Noise | float) -> WeightedNetwork:
    """The network whose outputs are the means of the responses and, if asked for, the logarithms of their noise."""
    sizes = {f"hidden[{i}]": width for i, width in enumerate(hidden)}
    check_at_least("BayesianNetwork", 1, features=features, context=context, **sizes)
    if not isinstance(noise, str):
        _check_positive(noise=noise)
    elif noise not in get_args(Noise):
        raise ValueError(f"BayesianNetwork: {unknown_name('noise', noise, get_args(Noise))}")
    return WeightedNetwork(context, hidden, features * (2 if noise == "heteroscedastic" else 1))


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"BayesianNetwork: expected {name} above 0 and finite; got {value}")
