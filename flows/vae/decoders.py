r"""Decoders of an autoencoder: distributions :math:`p(x \mid z)` of a row given its latent vector."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pushforward.flows.bijections.base import Bijection
from pushforward.flows.checks import check_shape
from pushforward.flows.state import Part

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Decoder(Part):
    """A distribution of rows given latent vectors, with independent features; a network computes its parameters.

    A subclass implements ``observe``, ``log_prob``, ``mean`` and ``sample``.

    Args:
        net: Network from latent vectors ``(..., L)`` to parameters of the distribution ``(..., D * parameters)``.
        features: Number of features :math:`D` of a row.

    Shape:
        rows ``(..., D)`` and latent vectors ``(..., L)`` with leading dimensions that broadcast, log-likelihoods
        ``(...)`` in nats.
    """

    def __init__(self, net: nn.Module, features: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"{type(self).__name__}: expected features of at least 1; got {features}")
        self.net = net
        self.features = features

    def observe(self, x: Tensor) -> Tensor:
        """Check rows, and return them as values that the decoder can produce.

        Raises:
            ValueError: If a shape does not fit, or a value is outside of the support.
        """
        raise NotImplementedError

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Log-likelihood ``(...)`` of rows from ``observe``, given latent vectors."""
        raise NotImplementedError

    def mean(self, z: Tensor) -> Tensor:
        """Expected row ``(..., D)`` given a latent vector."""
        raise NotImplementedError

    def sample(self, z: Tensor) -> Tensor:
        """Draw a row ``(..., D)`` for each latent vector, without gradients."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this decoder (without its weights)."""
        return {"net": self.net, "features": self.features}

    def _parameters_of(self, z: Tensor, each: int) -> Tensor:
        """Parameters ``(..., D, each)`` of the distribution."""
        flat = self.net(z)
        check_shape(type(self).__name__, "outputs of the network", flat, self.features * each)
        return torch.unflatten(flat, -1, (self.features, each))

    def _check(self, x: Tensor, valid: Tensor, expected: str) -> None:
        if not bool(valid.all()):
            wrong = x[~valid][0].item()
            raise ValueError(f"{type(self).__name__}: expected {expected}; got {wrong:g}")


class BernoulliDecoder(Decoder):
    """Independent Bernoulli features: a row is zeros and ones.

    ``observe`` turns intensities in [0, 1] into zeros and ones: by a threshold at 1/2, or by a random draw in every
    call ("dynamic binarisation"). Zeros and ones stay as they are either way.

    Args:
        net: Network to ``D`` logits.
        features: Number of features.
        stochastic: Binarise intensities at random instead of rounding them; likelihoods are those of the binary rows.
    """

    def __init__(self, net: nn.Module, features: int, *, stochastic: bool = False) -> None:
        super().__init__(net, features)
        self.stochastic = stochastic

    def observe(self, x: Tensor) -> Tensor:
        check_shape("BernoulliDecoder", "rows", x, self.features)
        self._check(x, (x >= 0) & (x <= 1), "0, 1, or intensities in [0, 1]")
        return torch.bernoulli(x) if self.stochastic and x.is_floating_point() else (x >= 0.5).to(x.dtype)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self._parameters_of(z, 1).squeeze(-1)
        return (x * logits - F.softplus(logits)).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return self._parameters_of(z, 1).squeeze(-1).sigmoid()

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        return torch.bernoulli(self.mean(z))

    def config(self) -> dict[str, Any]:
        return super().config() | {"stochastic": self.stochastic}


class GaussianDecoder(Decoder):
    r"""Continuous columns: :math:`x_d \sim N(\mu_d(z), \sigma_d^2)` with a learned :math:`\sigma` for each feature.

    Densities are in the units of the data; the network works in standardised units.

    Args:
        net: Network to ``D`` standardised means.
        features: Number of features.
        standardize: Map from the units of the data to standardised ones; None if the data are standardised.
        least_scale: Smallest standard deviation in standardised units. Without it, a feature that the latent vector
            determines would have an unbounded density.
    """

    def __init__(
        self, net: nn.Module, features: int, *, standardize: Bijection | None = None, least_scale: float = 1e-3
    ) -> None:
        super().__init__(net, features)
        if not 0 <= least_scale < 1:
            raise ValueError(f"GaussianDecoder: expected least_scale in [0, 1); got {least_scale}")
        if standardize is not None and standardize.features != features:
            raise ValueError(
                f"GaussianDecoder: expected {features} features to standardise; got {standardize.features}"
            )
        self.standardize = standardize
        self.least_scale = least_scale
        self.log_scale = nn.Parameter(torch.zeros(features))

    @property
    def scale(self) -> Tensor:
        """Standard deviations ``(D,)``, in standardised units."""
        return self.least_scale + self.log_scale.exp()

    def observe(self, x: Tensor) -> Tensor:
        check_shape("GaussianDecoder", "rows", x, self.features)
        self._check(x, x.isfinite(), "finite values")
        return x

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        scale = self.scale
        log_det: Tensor | float = 0.0
        if self.standardize is not None:
            x, log_det = self.standardize(x)
        residual = (x - self._parameters_of(z, 1).squeeze(-1)) / scale
        return log_det - (0.5 * residual.square() + scale.log() + _HALF_LOG_2PI).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        return self._in_data_units(self._parameters_of(z, 1).squeeze(-1))

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        mean = self._parameters_of(z, 1).squeeze(-1)
        return self._in_data_units(mean + self.scale * torch.randn_like(mean))

    def config(self) -> dict[str, Any]:
        return super().config() | {"standardize": self.standardize, "least_scale": self.least_scale}

    def _in_data_units(self, u: Tensor) -> Tensor:
        return u if self.standardize is None else self.standardize.inverse(u)[0]


class CountDecoder(Decoder):
    """Base class of decoders for integers 0 to K - 1; a subclass gives the log-probabilities of all K values.

    Args:
        net: Network to the parameters of the distribution.
        features: Number of features.
        values: Number of values :math:`K`.
    """

    def __init__(self, net: nn.Module, features: int, *, values: int) -> None:
        super().__init__(net, features)
        if values < 2:
            raise ValueError(f"{type(self).__name__}: expected values of at least 2; got {values}")
        self.values = values

    def observe(self, x: Tensor) -> Tensor:
        check_shape(type(self).__name__, "rows", x, self.features)
        valid = (x >= 0) & (x < self.values) & (x == x.round())
        self._check(x, valid, f"integers from 0 to {self.values - 1}")
        return x

    def log_probabilities(self, z: Tensor) -> Tensor:
        """Log-probabilities ``(..., D, K)`` of all values."""
        raise NotImplementedError

    def mean(self, z: Tensor) -> Tensor:
        probabilities = self.log_probabilities(z).exp()
        return probabilities @ torch.arange(self.values, dtype=z.dtype, device=z.device)

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        # The Gumbel-max trick: a draw without a loop over features.
        logits = self.log_probabilities(z)
        gumbel = -torch.empty_like(logits).exponential_().log()
        return (logits + gumbel).argmax(-1).to(z.dtype)

    def config(self) -> dict[str, Any]:
        return super().config() | {"values": self.values}


class CategoricalDecoder(CountDecoder):
    """Integers 0 to K - 1 with a free probability each; neighbouring values are not treated as similar.

    Args:
        net: Network to ``D * K`` logits.
        features: Number of features.
        values: Number of values :math:`K`.
    """

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self._parameters_of(z, self.values)
        lead = torch.broadcast_shapes(x.shape, logits.shape[:-1])
        chosen = logits.expand(*lead, self.values).gather(-1, x.long().expand(lead).unsqueeze(-1)).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).sum(-1)

    def log_probabilities(self, z: Tensor) -> Tensor:
        return self._parameters_of(z, self.values).log_softmax(-1)


class LogisticDecoder(CountDecoder):
    r"""Ordered integers 0 to K - 1: a logistic distribution rounded to them, with its tails in the first and the last.

    :math:`P(k) = \sigma((k + \tfrac12 - \mu) / s) - \sigma((k - \tfrac12 - \mu) / s)`. It has two parameters per
    feature where ``CategoricalDecoder`` has K, which is better for few rows of ordered values.

    Args:
        net: Network to ``D * 2`` parameters: location in units of K around the middle value, and log-scale.
        features: Number of features.
        values: Number of values :math:`K`.

    References:
        - Kingma et al. (2016), https://arxiv.org/abs/1606.04934, appendix C.
        - Salimans et al. (2017), https://arxiv.org/abs/1701.05517, section 2.1.
    """

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        location, log_scale = self.location_and_log_scale(z)
        return self._log_mass(x.to(location.dtype), location, log_scale).sum(-1)

    def log_probabilities(self, z: Tensor) -> Tensor:
        location, log_scale = self.location_and_log_scale(z)
        k = torch.arange(self.values, dtype=location.dtype, device=location.device)
        return self._log_mass(k, location[..., None], log_scale[..., None])

    def location_and_log_scale(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale ``(..., D)`` of the logistic distribution before it is rounded."""
        location, log_scale = self._parameters_of(z, 2).unbind(-1)
        # An output of 0 means a scale of K / 8: all values are likely at first. Beyond the bounds the distribution is a
        # single value, or nearly uniform.
        wide = math.log(self.values / 8)
        middle = 0.5 * (self.values - 1)
        return middle + self.values * location, (wide + log_scale).clamp(-5.0, wide + 5.0)

    def _log_mass(self, k: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
        """Log-probability of integers ``k``."""
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which does not cancel.
        inverse = (-log_scale).exp()
        upper, lower = (k + 0.5 - location) * inverse, (k - 0.5 - location) * inverse
        first, last = k == 0, k == self.values - 1
        inner = torch.log(-torch.expm1(-inverse)).masked_fill(first | last, 0.0)
        below = F.logsigmoid(upper).masked_fill(last, 0.0)
        above = F.logsigmoid(-lower).masked_fill(first, 0.0)
        return below + above + inner
