r"""Measure gradient estimators of the reverse KL: mean, variance, signal-to-noise ratio and cost.

One *replicate* is one gradient as a training step computes it, from ``n`` samples of the flow. Many replicates at
fixed parameters give the mean gradient, its total variance (the trace of the covariance of a replicate), their
signal-to-noise ratio, and the time of a gradient. Standard errors are by the jackknife over the replicates.

If flow and target are Gaussians of one feature, the variances are known: see :func:`gaussian_variances`.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pushforward.flows import Flow, Gaussian
from pushforward.flows.random_state import seeded
from pushforward.train.layer_metrics import named_layers
from pushforward.train.objectives.gradient_estimators import LogDensity, alpha_divergence

MEASURED_ESTIMATORS = ("score-function-bare", "score-function", "path-wise", "path", "path-two-pass")
"""The estimators of ``train.objectives.gradient_estimators``, and ``path`` again by a second pass of the flow."""

ALL = "all"
"""Name of the group of all parameters."""

_WARM_UPS = 3


class Statistics(NamedTuple):
    """Estimates from replicates of a gradient; ``_se`` are standard errors.

    Attributes:
        norm: Euclidean norm of the mean gradient, corrected for the part that the variance adds to it.
        norm_se: Its standard error.
        variance: Trace of the covariance of a replicate.
        variance_se: Its standard error.
        snr: Signal-to-noise ratio: the norm over the square root of the variance.
        snr_se: Its standard error.
    """

    norm: float
    norm_se: float
    variance: float
    variance_se: float
    snr: float
    snr_se: float


@dataclass(frozen=True)
class EstimatorResult:
    """The result of one estimator.

    Attributes:
        groups: Statistics by group of parameters.
        milliseconds: Time of each replicate.
    """

    groups: dict[str, Statistics]
    milliseconds: list[float] = field(repr=False)

    @property
    def median_milliseconds(self) -> float:
        """Median time of a gradient."""
        return statistics.median(self.milliseconds)

    @property
    def quartiles_milliseconds(self) -> tuple[float, float]:
        """Lower and upper quartile of the time of a gradient."""
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Measurement:
    """The results of all estimators at the same parameters.

    Attributes:
        loss: Mean of log q - log p over all samples, in nats: the reverse KL up to the target's constant.
        loss_se: Its standard error.
        estimators: Results by name of the estimator, in the order measured.
    """

    loss: float
    loss_se: float
    estimators: dict[str, EstimatorResult]


def measure(
    flow: Flow,
    log_target: LogDensity,
    *,
    samples: int = 256,
    replicates: int = 64,
    estimators: Sequence[str] = MEASURED_ESTIMATORS,
    seed: int = 0,
) -> Measurement:
    """Measure gradient estimators of the reverse KL at the current parameters of a flow.

    Within each replicate the estimators take turns, a different one begins each time, and all use the same random
    numbers: neither a busy machine nor chance favours one of them. The flow itself is not changed: a copy in evaluation
    mode is measured. Frozen parameters stay frozen and belong to no group.

    Args:
        flow: The flow, without context.
        log_target: Unnormalised log-density of samples ``(n, D)``.
        samples: Samples :math:`n` of the flow in one gradient.
        replicates: Gradients by each estimator; the relative standard error of a variance is about
            ``sqrt(2 / replicates)`` at worst.
        estimators: A selection of ``MEASURED_ESTIMATORS``.
        seed: Seed of all random numbers; the global generators are not changed.

    Raises:
        ValueError: For too few samples or replicates, an unknown estimator, or a flow without trainable parameters.

    Cost:
        ``replicates`` gradients by each estimator, and the memory of as many gradients.
    """
    if replicates < 3:
        raise ValueError(f"measure: expected at least 3 replicates; got {replicates}")
    unknown = [name for name in estimators if name not in MEASURED_ESTIMATORS]
    if unknown or not estimators:
        raise ValueError(
            f"measure: expected estimators among {', '.join(MEASURED_ESTIMATORS)}; got {', '.join(unknown) or '-'}"
        )
    flow = copy.deepcopy(flow).eval()
    groups = parameter_groups(flow)
    if not groups:
        raise ValueError("measure: the flow has no trainable parameters")
    parameters = [p for members in groups.values() for p in members]
    device = parameters[0].device
    on_cuda = device.type == "cuda"
    synchronize: Callable[[], None] = torch.cuda.synchronize if on_cuda else lambda: None
    # Not torch.manual_seed: it seeds every device and takes longer than a small gradient.
    generator = torch.cuda.default_generators[device.index or 0] if on_cuda else torch.default_generator
    size = sum(p.numel() for p in parameters)
    gradients = {name: torch.empty(replicates, size, dtype=parameters[0].dtype, device=device) for name in estimators}
    milliseconds: dict[str, list[float]] = {name: [] for name in estimators}
    losses = torch.empty(replicates, dtype=torch.float64)
    seeds = torch.randint(2**62, (replicates,), generator=torch.Generator().manual_seed(seed)).tolist()
    with seeded(seed, device):  # the state of each gradient follows
        for replicate in range(-_WARM_UPS, replicates):
            first = replicate % len(estimators)
            for name in (*estimators[first:], *estimators[:first]):
                generator.manual_seed(seeds[replicate])
                synchronize()
                began = time.perf_counter()
                loss = _loss(flow, log_target, samples, name)
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                synchronize()
                if replicate < 0:
                    continue
                milliseconds[name].append(1e3 * (time.perf_counter() - began))
                parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
                torch.cat([part.reshape(-1) for part in parts], out=gradients[name][replicate])
                if name == estimators[0]:
                    losses[replicate] = loss.detach()
    results = {
        name: EstimatorResult(_statistics_by_group(replicated, groups), milliseconds[name])
        for name, replicated in gradients.items()
    }
    for group in groups:  # a triangular matrix of one feature has nothing below its diagonal
        if all(r.groups[group].norm == r.groups[group].variance == 0 for r in results.values()):
            for result in results.values():
                del result.groups[group]
    return Measurement(float(losses.mean()), float(losses.std()) / math.sqrt(replicates), results)


def parameter_groups(flow: Flow) -> dict[str, list[nn.Parameter]]:
    """Group the trainable parameters by layer, from data to base; a single layer is split into its parameters.

    Groups are named like the layers of ``named_layers``; parameters of a single layer are ``<layer>.<name>``.
    """
    layers = {
        name: {key: p for key, p in layer.named_parameters() if p.requires_grad}
        for name, layer in named_layers(flow).items()
    }
    layers = {name: members for name, members in layers.items() if members}
    if len(layers) == 1:
        ((layer, members),) = layers.items()
        return {f"{layer}.{name}": [p] for name, p in members.items()}
    return {name: list(members.values()) for name, members in layers.items()}


def gradient_statistics(gradients: Tensor) -> Statistics:
    r"""Estimate mean, variance and signal-to-noise ratio of a gradient, with jackknife standard errors.

    The squared norm of the mean is estimated without bias, :math:`|\bar g|^2 - v / R`, and set to zero if negative. The
    standard error of a square root is the distance to the square root one standard error further up: if the estimate is
    zero, it is about the largest norm that the replicates do not rule out.

    Args:
        gradients: Replicates ``(R, P)``, R of 3 or more.

    Returns:
        The statistics: NaN if a gradient is not finite; ``snr`` is NaN if the variance is zero.
    """
    g = gradients.double()
    replicates = len(g)
    mean = g.mean(0)
    centred = g - mean
    squares, along = centred.square().sum(1), centred @ mean
    square_of_mean = mean @ mean
    variance = squares.sum() / (replicates - 1)
    signal = square_of_mean - variance / replicates
    # The leave-one-out estimates of the jackknife, in closed form.
    others = replicates - 1
    variances = (squares.sum() - squares * replicates / others) / (others - 1)
    signals = square_of_mean - 2 * along / others + squares / others**2 - variances / others
    norm, norm_se = _root(float(signal), _jackknife(signals))
    if not float(variance) > 0:
        return Statistics(norm, norm_se, float(variance), _jackknife(variances), math.nan, math.nan)
    snr, snr_se = _root(float(signal / variance), _jackknife(signals / variances))
    return Statistics(norm, norm_se, float(variance), _jackknife(variances), snr, snr_se)


def location_and_scale(flow: Flow) -> tuple[float, float] | None:
    """Return location and scale of a flow that is a trainable Gaussian of one feature; None for any other flow."""
    base = flow.base
    if flow.features != 1 or not isinstance(base, Gaussian) or base.context or base.covariance == "low-rank":
        return None
    if not base.trainable or any(True for _ in flow.bijection.parameters()):
        return None
    if not all(p.requires_grad for p in base.parameters()):
        return None
    z = torch.linspace(-2, 2, 5, dtype=base.dtype, device=base.device)[:, None]
    with torch.no_grad():
        if not torch.equal(flow.bijection.inverse(z)[0], z):
            return None
    return float(base.location.detach()), float(base.log_scale.detach().exp())


def gaussian_variances(location: float, scale: float, samples: int) -> dict[str, tuple[float, float]]:
    r"""Return the exact variances of all estimators for a Gaussian flow and a standard Gaussian target.

    The flow is :math:`q = N(m, s^2)` and the target :math:`\tilde p(x) = e^{-x^2 / 2}`. For one sample
    :math:`x = m + s \epsilon` the gradients by :math:`m` and :math:`\log s` are

    - ``path-wise``: :math:`x` and :math:`x s \epsilon - 1`, of variances :math:`s^2` and :math:`m^2 s^2 + 2 s^4`;
    - ``path``: :math:`m + (s - 1/s) \epsilon` and that times :math:`s \epsilon`, of variances :math:`(s - 1/s)^2` and
      :math:`m^2 s^2 + 2 (s^2 - 1)^2`;
    - ``score-function-bare``: :math:`f \epsilon / s` and :math:`f (\epsilon^2 - 1)` with
      :math:`f = \log q - \log \tilde p`, a polynomial of second degree in :math:`\epsilon`;
    - ``score-function``: the sample covariance of :math:`f` and these scores, whose variance follows from moments.

    Args:
        location: :math:`m`.
        scale: :math:`s`.
        samples: Samples in one gradient; ``score-function`` has a baseline from two samples on.

    Returns:
        For each estimator, the variance of the gradient by :math:`m` and of that by :math:`\log s`.
    """
    m, s, n = location, scale, samples
    # f = a + l eps + b eps^2
    a, l, b = 0.5 * m**2 - math.log(s) - 0.5 * math.log(2 * math.pi), m * s, 0.5 * (s**2 - 1)
    path_wise = (s**2, l**2 + 2 * s**4)
    path = ((s - 1 / s) ** 2, l**2 + 2 * (s**2 - 1) ** 2)
    bare = (
        (a**2 + 3 * l**2 + 15 * b**2 + 6 * a * b) / s**2 - m**2,
        2 * a**2 + 10 * (l**2 + 2 * a * b) + 78 * b**2 - (2 * b) ** 2,
    )
    one_sample = {"path-wise": path_wise, "path": path, "path-two-pass": path, "score-function-bare": bare}
    variances = {name: (by_location / n, by_log_scale / n) for name, (by_location, by_log_scale) in one_sample.items()}
    if n > 1:
        f_variance = l**2 + 2 * b**2
        variances["score-function"] = (
            _variance_of_covariance((3 * l**2 + 10 * b**2) / s**2, m, f_variance / s**2, n),
            _variance_of_covariance(10 * l**2 + 60 * b**2, 2 * b, 2 * f_variance, n),
        )
    return variances


def _variance_of_covariance(fourth: float, covariance: float, product: float, n: int) -> float:
    """Variance of the sample covariance of n pairs.

    Args:
        fourth: E[(x - Ex)²(y - Ey)²].
        covariance: Cov(x, y).
        product: Var(x) Var(y).
        n: Number of pairs.
    """
    return (fourth - (covariance**2 * (n - 2) - product) / (n - 1)) / n


def _loss(flow: Flow, log_target: LogDensity, samples: int, estimator: str) -> Tensor:
    if estimator == "path-two-pass":
        x = flow.rsample(samples)
        return (flow.frozen_log_prob(x) - log_target(x)).mean()
    return alpha_divergence(flow, log_target, samples, estimator)[0]  # type: ignore[arg-type]


def _statistics_by_group(gradients: Tensor, groups: dict[str, list[nn.Parameter]]) -> dict[str, Statistics]:
    sizes = [sum(p.numel() for p in members) for members in groups.values()]
    parts = zip(groups, gradients.split(sizes, dim=1), strict=True)
    return {ALL: gradient_statistics(gradients)} | {name: gradient_statistics(part) for name, part in parts}


def _jackknife(values: Tensor) -> float:
    """Standard error of a statistic from its leave-one-out values ``(R,)``."""
    return float(((len(values) - 1) * (values - values.mean()).square().mean()).sqrt())


def _root(square: float, se: float) -> tuple[float, float]:
    """Square root of an estimate (zero if negative), and its standard error."""
    if math.isnan(square):
        return math.nan, math.nan
    root = math.sqrt(max(square, 0.0))
    return root, math.sqrt(max(square, 0.0) + se) - root
