r"""Gaussian base distributions: :math:`z = g(\epsilon, \theta)` with :math:`\epsilon \sim N(0, I)`."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from pushforward.flows.bases.base import LocationScale
from pushforward.flows.bijections.base import saturate
from pushforward.flows.checks import at_least_single

_LOG_2PI = math.log(2.0 * math.pi)
_LEAST_OWN_VARIANCE = 1e-3
"""Least fraction of a feature's variance that ``initialize`` leaves unexplained by the common factors."""

Covariance = Literal["diagonal", "low-rank", "full"]


class Gaussian(LocationScale):
    r"""Reparameterized Gaussian :math:`z = m(c) + L(c)\,\epsilon`, :math:`\epsilon \sim N(0, I)`.

    Location and scale get gradients through ``log_prob`` and through the samples of ``rsample``. It starts as the
    standard Gaussian; a low-rank one starts with variances of 1 and small random factors, because factors of zero would
    have no gradient.

    Args:
        features: Number of features :math:`D`.
        context: Number of context features; the context shifts the location and scales the standard deviations
            through a linear map that starts at zero.
        covariance: ``"diagonal"``; ``"low-rank"`` for :math:`\operatorname{diag}(s^2) + V V^\top` with
            :math:`V = \operatorname{diag}(s)\,W`; ``"full"`` for a lower triangular :math:`L`.
        trainable: Whether location and scale are parameters; otherwise they are constants.
        rank: Columns :math:`r` of a low-rank :math:`V`; by default 8, or the features if there are fewer.

    Shape:
        points ``(..., D)``, noise ``(..., D)``, or ``(..., D + r)`` if low-rank, context ``(..., context)``,
        log-density ``(...)``.

    Cost:
        Low-rank: :math:`O(D r)` a point and :math:`O(D r^2)` once, by the Woodbury identity and the determinant lemma.
    """

    lower: Tensor
    factors: Tensor

    def __init__(
        self,
        features: int,
        context: int = 0,
        covariance: Covariance = "diagonal",
        trainable: bool = True,
        rank: int | None = None,
    ) -> None:
        super().__init__(features, context, trainable)
        if covariance not in ("diagonal", "low-rank", "full"):
            raise ValueError(f"Gaussian: expected covariance 'diagonal', 'low-rank' or 'full'; got {covariance!r}")
        if rank is not None and (covariance != "low-rank" or not 1 <= rank <= features):
            raise ValueError(
                f"Gaussian: expected a rank of 1 to {features} features, with covariance 'low-rank'; "
                f"got {rank} with {covariance!r}"
            )
        self.covariance = covariance
        self.rank = (rank or min(8, features)) if covariance == "low-rank" else 0
        if covariance == "full":
            # L = (I + strictly lower) diag(exp(log_scale)): unit columns times the scales.
            self.add_tensor("lower", torch.zeros(features, features), trainable)
        if covariance == "low-rank":
            factors = 0.1 * torch.randn(features, self.rank) / self.rank**0.5
            self.add_tensor("factors", factors, trainable)
            with torch.no_grad():
                self.log_scale.copy_(-0.5 * (1.0 + factors.square().sum(-1)).log())

    @torch.no_grad()
    def initialize(self, mean: Tensor, covariance: Tensor) -> None:
        """Set location and scale to a mean ``(D,)`` and covariance ``(D, D)``.

        A diagonal Gaussian matches the variances; a low-rank one matches the variances and fits the factors by maximum
        likelihood.
        """
        self.check_moments(mean, covariance)
        self.location.copy_(mean)
        if self.covariance == "diagonal":
            self.log_scale.copy_(0.5 * covariance.diagonal().log())
        elif self.covariance == "full":
            factor = torch.linalg.cholesky(covariance)
            scale = factor.diagonal()
            self.log_scale.copy_(scale.log())
            self.lower.copy_((factor / scale).tril(-1))
        else:
            deviation = covariance.diagonal().sqrt()
            loadings, own = _factor_analysis(covariance / deviation.outer(deviation), self.rank)
            self.log_scale.copy_((deviation * own.sqrt()).log())
            self.factors.copy_(loadings / own.sqrt()[:, None])

    def from_noise(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map standard-normal noise ``(..., D)``, or ``(..., D + rank)`` if low-rank, to samples ``(..., D)``."""
        location, log_scale = self.location_and_log_scale(context)
        if self.covariance == "low-rank":
            own, common = noise.split([self.features, self.rank], dim=-1)
            scaled: Tensor = (own + common @ self.factors.transpose(-1, -2)) * log_scale.exp()
            return location + scaled
        scaled = noise * log_scale.exp()
        if self.covariance == "full":
            scaled = scaled + scaled @ self.lower.tril(-1).transpose(-1, -2)
        return location + scaled

    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map points ``(..., D)`` to standard-normal latents ``(..., D)``: the inverse of ``from_noise`` if it has one.

        A low-rank Gaussian is whitened by the inverse symmetric root of :math:`I + W W^T`.
        """
        if self.covariance != "low-rank":
            return self.latents_and_log_scale(z, context)[0]
        y, _ = self._to_standard(z, context)
        _, singular, right = torch.linalg.svd(at_least_single(self.factors), full_matrices=False)
        singular, right = singular.to(y.dtype), right.to(y.dtype)
        # With W = Q S R': (I + W W')^(-1/2) = I + W R diag(((1 + S²)^(-1/2) - 1) / S²) R' W'.
        root = (1.0 + singular.square()).sqrt()
        shrink = -1.0 / (root * (1.0 + root))
        directions = self.factors @ right.transpose(-1, -2)
        whitened: Tensor = y + ((y @ directions) * shrink) @ directions.transpose(-1, -2)
        return whitened

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of points ``(..., D)``, in nats."""
        if self.covariance != "low-rank":
            latents, log_scale = self.latents_and_log_scale(z, context)
            return -0.5 * (latents.square().sum(-1) + self.features * _LOG_2PI) - log_scale.sum(-1)
        y, log_scale = self._to_standard(z, context)
        y = saturate(y)
        factors = at_least_single(self.factors)
        factor = torch.linalg.cholesky(
            factors.transpose(-1, -2) @ factors + torch.eye(self.rank, dtype=factors.dtype, device=factors.device)
        )
        # y' (I + W W')^-1 y is the minimum over c of |y - W c|² + |c|²: a sum of squares does not cancel, as the
        # difference of two large numbers in the Woodbury identity would.
        solved = torch.cholesky_solve(factors.transpose(-1, -2), factor).to(y.dtype)
        common = y @ solved.transpose(-1, -2)
        rest = y - common @ self.factors.transpose(-1, -2)
        squares = rest.square().sum(-1) + common.square().sum(-1)
        log_diagonal = factor.diagonal().log().sum().to(y.dtype)
        log_norm: Tensor = -log_scale.sum(-1) - log_diagonal - 0.5 * self.features * _LOG_2PI
        return log_norm - 0.5 * squares

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        return self.from_noise(self.draw_noise(n, context), context)

    def draw_noise(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        """Draw standard-normal noise ``(n, ..., D)`` for ``from_noise``, in the dtype of the parameters."""
        return torch.randn(*self.lead(n, context), self.features + self.rank, dtype=self.dtype, device=self.device)

    def config(self) -> dict[str, Any]:
        rank = {"rank": self.rank} if self.covariance == "low-rank" else {}
        return super().config() | {"covariance": self.covariance} | rank

    def latents_and_log_scale(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents ``(..., D)`` of points, and log-scales, whose sum is the log-determinant of ``from_noise``.

        For diagonal and full covariances.
        """
        self.check_points(z)
        location, log_scale = self.location_and_log_scale(context)
        centred = z - location
        if self.covariance == "full":
            # One small triangular solve for the matrix, then one matrix product for all points.
            lower = at_least_single(self.lower.tril(-1))
            eye = torch.eye(self.features, dtype=lower.dtype, device=z.device)
            inverse = torch.linalg.solve_triangular(lower + eye, eye, upper=False, unitriangular=True)
            centred = saturate(centred) @ inverse.to(centred.dtype).transpose(-1, -2)
        return centred * (-log_scale).exp(), log_scale


def _factor_analysis(correlation: Tensor, rank: int, rounds: int = 100) -> tuple[Tensor, Tensor]:
    """Split a correlation matrix ``(D, D)`` into loadings ``(D, rank)`` and each feature's own variance ``(D,)``.

    The fixed-point iteration of Lawley and Maxwell: the loadings are the leading eigenvectors in units of the own
    variances, and the own variances are the rest. Less accurate than an optimizer, but enough for a start.
    """
    own = torch.full_like(correlation.diagonal(), 0.5)
    loadings = correlation.new_zeros(len(correlation), rank)
    for _ in range(rounds):
        root = own.sqrt()
        values, vectors = torch.linalg.eigh(correlation / root.outer(root))
        loadings = root[:, None] * vectors[:, -rank:] * (values[-rank:] - 1.0).clamp_min(0.0).sqrt()
        # Where the factors explain all of a variance, shrink the loadings: the total variance must stay.
        explained = loadings.square().sum(-1)
        most = 1.0 - _LEAST_OWN_VARIANCE
        loadings = loadings * (most / explained.clamp_min(most)).sqrt()[:, None]
        before, own = own, 1.0 - loadings.square().sum(-1)
        if bool((own - before).abs().max() < 1e-5):
            break
    return loadings, own
