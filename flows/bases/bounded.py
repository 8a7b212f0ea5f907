r"""Base distributions of independent features on an interval or on the positive numbers.

Behind a ``Logit`` or ``Log``, densities and samples are computed on the real line, where nothing rounds to an end of
the support; see ``TransformedDistribution``.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pushforward.flows.bases.base import Base, LocationScale
from pushforward.flows.bases.normal import normal_from_tail
from pushforward.flows.bases.sampling import log_gamma_rsample, uniform_sample
from pushforward.flows.bijections.support import Log, Logit
from pushforward.flows.checks import at_least_single


class Uniform(LocationScale):
    r"""Independent uniform features on the interval from :math:`l` to :math:`l + w`, both trainable.

    Do not train it by maximum likelihood: the likelihood depends on the width only, so its gradient narrows the
    interval until a point falls outside, where density and gradient are zero. Train it through its samples, or set the
    interval by ``initialize`` or by ``low`` and ``width``.

    Args:
        features: Number of features.
        context: Number of context features, which move the lower end and scale the width.
        trainable: Whether lower end and width are parameters.
        low: Initial lower end.
        width: Initial width.
    """

    adopted = ("low", "width")

    def __init__(
        self, features: int, context: int = 0, trainable: bool = True, low: float = 0.0, width: float = 1.0
    ) -> None:
        super().__init__(features, context, trainable)
        self.adopt(low=low, width=width)
        with torch.no_grad():
            self.location.fill_(low)
            self.log_scale.fill_(math.log(width))

    def adopt(self, **arguments: Any) -> None:
        low, width = arguments["low"], arguments["width"]
        if not (0 < width < math.inf and math.isfinite(low)):
            raise ValueError(f"Uniform: expected a finite low and a finite width above 0; got {low}, {width}")
        self._low, self._width = low, width

    @property
    def support(self) -> list[tuple[float, float]] | None:
        if self.trainable or self.context:
            return None
        return [(self._low, self._low + self._width)] * self.features

    def standard_log_prob(self, y: Tensor) -> Tensor:
        return torch.where((y >= 0) & (y <= 1), torch.zeros_like(y), -torch.inf).sum(-1)

    def standard_rsample(self, lead: tuple[int, ...]) -> Tensor:
        return uniform_sample(self, lead)

    def standard_latents(self, y: Tensor) -> Tensor:
        return normal_from_tail(torch.minimum(y, 1.0 - y).clamp(min=0.0), y - 0.5)

    def standard_moments(self) -> tuple[Tensor, Tensor]:
        return torch.full_like(self.location, 0.5), torch.full_like(self.location, 12.0**-0.5)

    def config(self) -> dict[str, Any]:
        return super().config() | {"low": self._low, "width": self._width}

    def transformed_log_prob(self, bijection: nn.Module, z: Tensor) -> Tensor:
        if not isinstance(bijection, Logit):
            return super().transformed_log_prob(bijection, z)
        return (logsigmoid(z) + logsigmoid(-z)).sum(-1)  # the interval cancels: it is also the bijection's

    def transformed_rsample(self, bijection: nn.Module, n: int | tuple[int, ...] = ()) -> Tensor:
        if not isinstance(bijection, Logit):
            return super().transformed_rsample(bijection, n)
        return uniform_sample(self, self.lead(n, None)).logit()


class Gamma(Base):
    r"""Independent Gamma features on the positive numbers, with trainable concentration :math:`k` and rate :math:`r`.

    Density :math:`r^k x^{k-1} e^{-r x} / \Gamma(k)`. ``TransformedDistribution`` and ``Log`` make it a base on all of
    space.

    Args:
        features: Number of features.
        concentration: Initial concentration.
        rate: Initial rate.
        trainable: Whether concentration and rate are parameters.
    """

    log_concentration: Tensor
    log_rate: Tensor
    free = ("concentration", "rate", "trainable")

    def __init__(self, features: int, concentration: float = 1.0, rate: float = 1.0, trainable: bool = True) -> None:
        super().__init__(features)
        _check_positive("Gamma", concentration=concentration, rate=rate)
        self._initial = {"concentration": concentration, "rate": rate, "trainable": trainable}
        self.add_tensor("log_concentration", torch.full((features,), math.log(concentration)), trainable)
        self.add_tensor("log_rate", torch.full((features,), math.log(rate)), trainable)

    @property
    def support(self) -> list[tuple[float, float]] | None:
        return [(0.0, math.inf)] * self.features

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Match means ``(D,)``, which must be positive, and the variances of a covariance ``(D, D)``."""
        self.check_moments(mean, covariance)
        if not bool((mean > 0).all()):
            raise ValueError(f"Gamma: expected means above 0; got {mean.tolist()}")
        rate = mean / covariance.diagonal()
        self.log_rate.copy_(rate.log())
        self.log_concentration.copy_((mean * rate).log())

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        inside = z > 0
        log_z = torch.where(inside, z, 1.0).log()
        density = self._log_prob_of_log(log_z) - log_z
        return torch.where(inside, density, -torch.inf).sum(-1)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        info = torch.finfo(self.dtype)
        return self._log_rsample(self.lead(n, None)).exp().clamp(info.tiny, info.max)

    @torch.no_grad()
    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        concentration, scaled = self.log_concentration.exp(), (z * self.log_rate.exp()).clamp(min=0.0)
        lower = torch.special.gammainc(concentration, scaled)
        upper = torch.special.gammaincc(concentration, scaled)
        return normal_from_tail(torch.minimum(lower, upper), upper.new_tensor(0.5) - upper)

    def config(self) -> dict[str, Any]:
        return {"features": self.features} | self._initial

    def transformed_log_prob(self, bijection: nn.Module, z: Tensor) -> Tensor:
        if not isinstance(bijection, Log):
            return super().transformed_log_prob(bijection, z)
        return self._log_prob_of_log(z).sum(-1)

    def transformed_rsample(self, bijection: nn.Module, n: int | tuple[int, ...] = ()) -> Tensor:
        if not isinstance(bijection, Log):
            return super().transformed_rsample(bijection, n)
        return self._log_rsample(self.lead(n, None))

    def _log_prob_of_log(self, log_x: Tensor) -> Tensor:
        """Log-density of the logarithm of each feature, at ``(..., D)``."""
        concentration, shifted = self.log_concentration.exp(), log_x + self.log_rate
        # Clamped so that the log-density stays finite where the exponential would overflow.
        shifted = shifted.clamp(max=math.log(torch.finfo(shifted.dtype).max) - 1.0)
        return concentration * shifted - shifted.exp() - torch.lgamma(concentration)

    def _log_rsample(self, lead: tuple[int, ...]) -> Tensor:
        return log_gamma_rsample(self.log_concentration.exp(), lead) - self.log_rate


class Beta(Base):
    r"""Independent Beta features between 0 and 1, with trainable :math:`a` and :math:`b`.

    Density :math:`x^{a-1} (1-x)^{b-1} / B(a, b)`. ``TransformedDistribution`` and ``Logit`` make it a base on all of
    space.

    Args:
        features: Number of features.
        a: Initial :math:`a`.
        b: Initial :math:`b`.
        trainable: Whether :math:`a` and :math:`b` are parameters.
    """

    log_a: Tensor
    log_b: Tensor
    free = ("a", "b", "trainable")

    def __init__(self, features: int, a: float = 1.0, b: float = 1.0, trainable: bool = True) -> None:
        super().__init__(features)
        _check_positive("Beta", a=a, b=b)
        self._initial = {"a": a, "b": b, "trainable": trainable}
        self.add_tensor("log_a", torch.full((features,), math.log(a)), trainable)
        self.add_tensor("log_b", torch.full((features,), math.log(b)), trainable)

    @property
    def support(self) -> list[tuple[float, float]] | None:
        return [(0.0, 1.0)] * self.features

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Match means ``(D,)`` between 0 and 1, and the variances of a covariance ``(D, D)``."""
        self.check_moments(mean, covariance)
        total = mean * (1.0 - mean) / covariance.diagonal() - 1.0
        if not bool(((mean > 0) & (mean < 1) & (total > 0)).all()):
            raise ValueError(
                "Beta: expected means between 0 and 1 and variances below mean (1 - mean); "
                f"got {mean.tolist()} and {covariance.diagonal().tolist()}"
            )
        self.log_a.copy_((mean * total).log())
        self.log_b.copy_(((1.0 - mean) * total).log())

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_points(z)
        inside = (z > 0) & (z < 1)
        z = torch.where(inside, z, 0.5)
        a, b = self.log_a.exp(), self.log_b.exp()
        density = (a - 1.0) * z.log() + (b - 1.0) * torch.log1p(-z) - _log_beta(a, b)
        return torch.where(inside, density, -torch.inf).sum(-1)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        info = torch.finfo(self.dtype)
        return self._logit_rsample(self.lead(n, None)).sigmoid().clamp(info.tiny, 1.0 - 0.5 * info.eps)

    @torch.no_grad()
    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        from scipy import special

        self.check_points(z)
        a, b, x = (at_least_single(t).detach().cpu().numpy() for t in (self.log_a.exp(), self.log_b.exp(), z))
        x = x.clip(0.0, 1.0)
        lower, upper = special.betainc(a, b, x), special.betainc(b, a, 1.0 - x)
        return normal_from_tail(torch.from_numpy(np.minimum(lower, upper)).to(z), torch.from_numpy(lower - upper).to(z))

    def config(self) -> dict[str, Any]:
        return {"features": self.features} | self._initial

    def transformed_log_prob(self, bijection: nn.Module, z: Tensor) -> Tensor:
        if not isinstance(bijection, Logit):
            return super().transformed_log_prob(bijection, z)
        a, b = self.log_a.exp(), self.log_b.exp()
        return (a * logsigmoid(z) + b * logsigmoid(-z) - _log_beta(a, b)).sum(-1)

    def transformed_rsample(self, bijection: nn.Module, n: int | tuple[int, ...] = ()) -> Tensor:
        if not isinstance(bijection, Logit):
            return super().transformed_rsample(bijection, n)
        return self._logit_rsample(self.lead(n, None))

    def _logit_rsample(self, lead: tuple[int, ...]) -> Tensor:
        """Samples of ``log x - log(1 - x)``, accurate also where ``x`` would round to 0 or 1."""
        return log_gamma_rsample(self.log_a.exp(), lead) - log_gamma_rsample(self.log_b.exp(), lead)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _check_positive(where: str, **values: float) -> None:
    if not all(0 < value < math.inf for value in values.values()):
        names = " and ".join(values)
        raise ValueError(f"{where}: expected finite {names} above 0; got {', '.join(map(str, values.values()))}")
