r"""Gradient estimators: four ways to differentiate an expectation under a flow by the parameters of the flow.

Each function returns a number whose *value* is the usual Monte Carlo estimate and whose *gradient* is that of the
chosen estimator, so that it can be added, averaged and minimised like any loss. With a sample
:math:`x = T_\theta(\epsilon)` of the flow :math:`q_\theta`:

- ``score-function``: :math:`(f(x) - b) \nabla_\theta \log q_\theta(x)` at fixed samples, with the mean of the other
  samples as baseline :math:`b`; works for any f, also one without derivatives (Williams 1992).
  ``score-function-bare``: without the baseline.
- ``path-wise``: the derivative of everything that depends on the parameters, through the samples and the density (the
  reparameterization trick, Kingma & Welling 2014).
- ``path``: through the samples alone. The derivative of the density at fixed samples has mean zero and is left out; the
  rest vanishes at every sample if the flow equals its target (Roeder et al. 2017, "sticking the landing"). For
  importance-weighted bounds and alpha divergences, the part whose mean is not zero is reparameterized once more (DReG,
  Tucker et al. 2018).

``path`` does not always have the lower variance: for a Gaussian of variance :math:`\sigma^2` and a standard Gaussian as
target, its variance is :math:`(\sigma^2 - 1)^2 / \sigma^4` times that of ``path-wise``, which is above one for
:math:`\sigma^2 < 1/2`, far from the optimum, where the flow is much too narrow.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from pushforward.common.text import unknown_name
from pushforward.flows import Flow
from pushforward.flows.bijections.base import pull_back

GradientEstimator = Literal["path", "path-wise", "score-function", "score-function-bare"]
ESTIMATORS: tuple[GradientEstimator, ...] = get_args(GradientEstimator)

LogDensity = Callable[[Tensor], Tensor]


def expectation(
    flow: Flow, function: LogDensity, n: int, estimator: GradientEstimator = "path-wise", context: Tensor | None = None
) -> Tensor:
    r"""Estimate :math:`E_q[f(x)]` for a function of the samples alone, differentiable by the parameters of the flow.

    Such a function does not depend on the density, so ``path`` and ``path-wise`` are the same.

    Args:
        flow: The distribution of the samples.
        function: From samples ``(n, D)`` to values ``(n,)``.
        n: Number of samples; two or more for a baseline.
        estimator: The gradient estimator.
        context: Context of the flow.

    Returns:
        The mean, ``()``.

    Raises:
        ValueError: If the estimator is unknown, or a single sample has no baseline.
    """
    _check(estimator, n)
    if not estimator.startswith("score-function"):
        return function(flow.rsample(n, context)).mean()
    x = flow.sample(n, context)
    with torch.no_grad():
        values = function(x)
    return _with_gradient(values.mean(), _score_loss(values, flow.log_prob(x, context), estimator))


def alpha_divergence(
    flow: Flow, log_target: LogDensity, n: int, estimator: GradientEstimator = "path", alpha: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Estimate an alpha divergence between a flow and an unnormalised target, up to a constant of the target.

    With weights :math:`w = \tilde p(x) / q(x)` at samples of the flow it is
    :math:`\frac{1}{\alpha(\alpha - 1)} \log E_q[w^\alpha]`; ``alpha=0`` is the reverse KL, :math:`-E_q[\log w]`,
    which seeks modes, ``alpha=1`` the forward KL, :math:`E_p[\log w]`, by weights normalised in the batch, which
    covers modes, and ``alpha=2`` the variance of the weights. The gradient of the logarithm of a mean is biased by
    :math:`O(1/n)`, and so is that of ``alpha=1``.

    Args:
        flow: The flow.
        log_target: Unnormalised log-density of samples ``(n, D)``.
        n: Number of samples.
        estimator: The gradient estimator; ``path-wise`` is undefined at ``alpha=1``.
        alpha: Order of the divergence, 0 or more.

    Returns:
        The estimate ``()``, and the log-weights ``(n,)``, which carry no gradient.

    Raises:
        ValueError: If the estimator is unknown or does not exist for this divergence.

    References:
        - Minka (2005), Divergence measures and message passing, Microsoft Research TR-2005-173.
        - Li & Turner (2016), Renyi divergence variational inference, https://arxiv.org/abs/1602.02311.
        - Midgley et al. (2023), Flow annealed importance sampling bootstrap, https://arxiv.org/abs/2208.01893
          (alpha=2).
    """
    _check(estimator, n)
    if not alpha >= 0:
        raise ValueError(f"alpha_divergence: expected alpha of at least 0; got {alpha}")
    if alpha == 1 and estimator == "path-wise":
        raise ValueError("alpha_divergence: the forward KL (alpha=1) has no path-wise gradient; take estimator='path'")
    if estimator.startswith("score-function"):
        x = flow.sample(n)
        log_q = flow.log_prob(x)
        log_w = log_target(x).detach() - log_q.detach()
        if alpha == 0:
            loss = _score_loss(-log_w, log_q, estimator)
        else:
            shares = torch.softmax(alpha * log_w, 0)
            # Subtracting the mean share adds no bias: the score function has mean zero.
            kept = shares if estimator == "score-function-bare" else shares - 1 / n
            loss = -(kept * log_q).sum() / alpha
        return _with_gradient(alpha_value(log_w, alpha), loss), log_w
    x, log_q = flow.rsample_and_log_prob(n, path=estimator == "path")
    weights = log_target(x) - log_q
    log_w = weights.detach()
    shares = torch.softmax(alpha * log_w, 0)
    # The gradient of E_q[w^alpha] through the density alone is (1 - alpha) times the gradient through the samples.
    loss = -(shares * weights).sum() if estimator == "path" else (shares * weights).sum() / (alpha - 1)
    return _with_gradient(alpha_value(log_w, alpha), loss), log_w


def importance_bound(
    flow: Flow, log_target: LogDensity, n: int, samples: int, estimator: GradientEstimator = "path"
) -> tuple[Tensor, Tensor]:
    r"""Estimate the importance-weighted bound :math:`E[\log \frac1K \sum_k w_k] \le \log Z`.

    Its ``path`` gradient is DReG: :math:`\sum_k \bar w_k^2 \, \partial \log w_k / \partial x_k \; dx_k / d\theta` with
    normalised weights; its signal-to-noise ratio does not fall with more samples, as that of ``path-wise`` does.

    Args:
        flow: The flow.
        log_target: Unnormalised log-density of samples ``(n, D)``.
        n: Number of bounds that are averaged.
        samples: Samples :math:`K` of each bound; a single one gives the evidence bound, minus the reverse KL.
        estimator: The gradient estimator.

    Returns:
        The mean bound ``()``, and the log-weights ``(samples, n)``, which carry no gradient.

    References:
        - Burda et al. (2016), https://arxiv.org/abs/1509.00519; Rainforth et al. (2018),
          https://arxiv.org/abs/1802.04537.
        - Tucker et al. (2019), Doubly reparameterized gradient estimators, https://arxiv.org/abs/1810.04152, eq. 8.
    """
    _check(estimator, n)
    if samples < 1:
        raise ValueError(f"importance_bound: expected samples of at least 1; got {samples}")
    if estimator.startswith("score-function"):
        x = flow.sample((samples, n))
        log_q = flow.log_prob(x)
        log_w = log_target(x.flatten(0, 1)).detach().reshape(samples, n) - log_q.detach()
        bounds = log_mean_exp(log_w)
        shares = torch.softmax(log_w, 0)
        # The bound depends on the parameters through the distribution of the samples and through the density.
        signal = bounds if estimator == "score-function-bare" else bounds - (bounds.sum() - bounds) / (n - 1)
        gain = ((signal - shares) * log_q).sum(0).mean()
        return _with_gradient(bounds.mean(), gain), log_w
    x, log_q = flow.rsample_and_log_prob((samples, n), path=estimator == "path")
    weights = log_target(x.flatten(0, 1)).reshape(samples, n) - log_q
    log_w = weights.detach()
    shares = torch.softmax(log_w, 0)
    gain = ((shares.square() if estimator == "path" else shares) * weights).sum(0).mean()
    return _with_gradient(log_mean_exp(log_w).mean(), gain), log_w


def forward_kl(flow: Flow, x: Tensor, target_score: Tensor | None = None) -> Tensor:
    r"""The forward KL up to a constant, from samples of the target: :math:`-E_p[\log q(x)]`.

    With the score function of the target :math:`\nabla \log \tilde p(x)` at the samples, the gradient is the path
    gradient of the reverse KL between the target pulled back to the base and the base; it vanishes at every sample if
    the flow equals the target. Without the score function, the gradient is that of maximum likelihood.

    Args:
        flow: The flow.
        x: Samples ``(n, D)`` of the target.
        target_score: The score function of the target at the samples ``(n, D)``.

    Returns:
        ``()``, in nats.

    References:
        - Vaitl et al. (2024), https://arxiv.org/abs/2403.15881, section 5.
    """
    if target_score is None:
        return -flow.log_prob(x).mean()
    z, log_det, pulled = flow.bijection.forward_and_score(x, target_score)
    value = -(flow.base.log_prob(z, None) + log_det).detach().mean()
    with torch.enable_grad():
        own = z.detach().requires_grad_()
        log_base = flow.base.log_prob(own, None)
        (score,) = pull_back((log_base,), (own,), (torch.ones_like(log_base),), retain_graph=True)
    # The base learns from the latent samples by likelihood, the layers from the difference of the score functions.
    loss = (z * (pulled - score)).sum(-1).mean() - log_base.mean()
    return _with_gradient(value, loss)


def alpha_value(log_w: Tensor, alpha: float) -> Tensor:
    """The alpha divergence ``()``, up to log Z, from the log-weights ``(n,)`` of samples of the flow."""
    if alpha == 0:
        return -log_w.mean()
    log_z = log_mean_exp(log_w)
    if alpha == 1:
        return (torch.softmax(log_w, 0) * log_w).sum() - log_z
    return log_mean_exp(alpha * log_w) / (alpha * (alpha - 1))


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Logarithm of the mean weight over the first dimension."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def _score_loss(values: Tensor, log_q: Tensor, estimator: GradientEstimator) -> Tensor:
    n = len(values)
    if estimator == "score-function":
        # The mean over the other samples is independent of this one, so it adds no bias.
        values = values - (values.sum() - values) / (n - 1)
    return (values * log_q).mean()


def _with_gradient(value: Tensor, loss: Tensor) -> Tensor:
    """Combine the value of one tensor with the gradient of another."""
    return value.detach() + (loss - loss.detach())


def _check(estimator: str, n: int) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(unknown_name("estimator", estimator, ESTIMATORS))
    least = 2 if estimator == "score-function" else 1
    if n < least:
        raise ValueError(f"{estimator}: expected at least {least} samples; got {n}")
