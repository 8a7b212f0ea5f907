r"""The laboratory of gradient estimators: mean, variance and cost of the gradient of the reverse KL, measured.

One *replicate* is one gradient as a training step would take it: from ``n`` points of the flow. Many replicates at
fixed parameters tell the mean gradient, its total variance (the trace of the covariance of a replicate), their ratio,
and what a gradient costs; each with its standard error, by the jackknife over the replicates.

Where flow and target are Gaussians of one feature the variances are known, and :func:`gaussian_variances` says them.
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
from pushforward.train.layer_metrics import named_layers
from pushforward.train.objectives.gradient_estimators import LogDensity, alpha_divergence

LABORATORY = ("score-function-bare", "score-function", "path-wise", "path", "path-two-pass")
"""What is compared: the estimators of ``train.estimators``, and ``path`` once more by a second pass of the flow."""

ALL = "all"
"""Name of the group of all parameters."""

_WARM_UPS = 3


class Statistics(NamedTuple):
    """What replicates of a gradient say of it; ``_se`` are standard errors.

    ``norm`` is the Euclidean norm of the mean gradient, without the part that the variance adds to it; ``variance`` the
    trace of the covariance of a replicate; ``snr`` the norm over the root of the variance.
    """

    norm: float
    norm_se: float
    variance: float
    variance_se: float
    snr: float
    snr_se: float


@dataclass(frozen=True)
class Behaviour:
    """How one estimator did: statistics by group of parameters, and the milliseconds of each replicate."""

    groups: dict[str, Statistics]
    milliseconds: list[float] = field(repr=False)

    @property
    def median_milliseconds(self) -> float:
        """Median cost of a gradient."""
        return statistics.median(self.milliseconds)

    @property
    def quartiles_milliseconds(self) -> tuple[float, float]:
        """Lower and upper quartile of the cost of a gradient."""
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Measurement:
    """Estimators at the same parameters.

    Attributes:
        loss: Mean of log q - log p over all points, in nats: the reverse KL up to the target's constant.
        loss_se: Its standard error.
        estimators: Behaviour by name, in the order measured.
    """

    loss: float
    loss_se: float
    estimators: dict[str, Behaviour]


def measure(
    flow: Flow,
    log_target: LogDensity,
    *,
    points: int = 256,
    replicates: int = 64,
    estimators: Sequence[str] = LABORATORY,
    seed: int = 0,
) -> Measurement:
    """Measure gradient estimators of the reverse KL at the parameters a flow has.

    The estimators take turns within each replicate, the one that begins changes, and all see the same noise; so neither
    a busy machine nor luck favours one of them. The flow is copied, put in evaluation mode, and left as it is; frozen
    parameters stay frozen, and belong to no group.

    Args:
        flow: The flow, without context.
        log_target: Unnormalised log-density of points ``(n, D)``.
        points: Rows :math:`n` of one gradient.
        replicates: Gradients by each estimator; the relative standard error of a variance is about
            ``sqrt(2 / replicates)`` at worst.
        estimators: Which of ``LABORATORY``.
        seed: Decides all noise; the global generators are left as they are.

    Raises:
        ValueError: For too few points or replicates, an unknown estimator, or a flow with nothing to learn.

    Cost:
        ``replicates`` gradients by each estimator, and the memory of as many gradients.
    """
    if replicates < 3:
        raise ValueError(f"measure: expected at least 3 replicates; got {replicates}")
    unknown = [name for name in estimators if name not in LABORATORY]
    if unknown or not estimators:
        raise ValueError(f"measure: expected estimators among {', '.join(LABORATORY)}; got {', '.join(unknown) or '-'}")
    flow = copy.deepcopy(flow).eval()
    groups = parameter_groups(flow)
    if not groups:
        raise ValueError("measure: the flow has no parameters that learn")
    parameters = [p for members in groups.values() for p in members]
    device = parameters[0].device
    on_cuda = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if on_cuda else lambda: None
    # Not torch.manual_seed, which seeds all devices there may be and takes longer than a small gradient.
    generator = torch.cuda.default_generators[device.index or 0] if on_cuda else torch.default_generator
    sizes = sum(p.numel() for p in parameters)
    found = {name: torch.empty(replicates, sizes, dtype=parameters[0].dtype, device=device) for name in estimators}
    milliseconds: dict[str, list[float]] = {name: [] for name in estimators}
    losses = torch.empty(replicates, dtype=torch.float64)
    seeds = torch.randint(2**62, (replicates,), generator=torch.Generator().manual_seed(seed)).tolist()
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        for replicate in range(-_WARM_UPS, replicates):
            turn = replicate % len(estimators)
            for name in (*estimators[turn:], *estimators[:turn]):
                generator.manual_seed(seeds[replicate])
                wait()
                began = time.perf_counter()
                loss = _loss(flow, log_target, points, name)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                wait()
                if replicate < 0:
                    continue
                milliseconds[name].append(1e3 * (time.perf_counter() - began))
                parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
                torch.cat([part.reshape(-1) for part in parts], out=found[name][replicate])
                if name == estimators[0]:
                    losses[replicate] = loss.detach()
    behaviours = {
        name: Behaviour(_statistics_by_group(gradients, groups), milliseconds[name])
        for name, gradients in found.items()
    }
    for group in groups:  # a triangle of one feature has nothing below its diagonal
        if all(b.groups[group].norm == b.groups[group].variance == 0 for b in behaviours.values()):
            for behaviour in behaviours.values():
                del behaviour.groups[group]
    return Measurement(float(losses.mean()), float(losses.std()) / math.sqrt(replicates), behaviours)


def parameter_groups(flow: Flow) -> dict[str, list[nn.Parameter]]:
    """The parameters that learn, by layer and data end first; those of a single layer, one by one.

    Names are those of ``named_layers``; a parameter of a single layer is ``<layer>.<name>``.
    """
    layers = {
        name: {place: p for place, p in layer.named_parameters() if p.requires_grad}
        for name, layer in named_layers(flow).items()
    }
    layers = {name: members for name, members in layers.items() if members}
    if len(layers) == 1:
        ((layer, members),) = layers.items()
        return {f"{layer}.{name}": [p] for name, p in members.items()}
    return {name: list(members.values()) for name, members in layers.items()}


def gradient_statistics(gradients: Tensor) -> Statistics:
    r"""Mean, variance and signal-to-noise ratio of replicates of a gradient, with jackknife standard errors.

    The squared norm of the mean is estimated without bias, :math:`|\bar g|^2 - v / R`, and counts as zero where that is
    negative. A root's standard error is the distance to the root one standard error further up: where nothing is left
    of the mean it is about the largest norm that the replicates do not rule out.

    Args:
        gradients: ``(R, P)``, R of 3 or more.

    Returns:
        The statistics; not numbers where a gradient is not, and no ``snr`` without variance.
    """
    g = gradients.double()
    replicates = len(g)
    mean = g.mean(0)
    centred = g - mean
    squares, along = centred.square().sum(1), centred @ mean
    square_of_mean = mean @ mean
    variance = squares.sum() / (replicates - 1)
    signal = square_of_mean - variance / replicates
    # The same of all replicates but one, for each of them.
    others = replicates - 1
    variances = (squares.sum() - squares * replicates / others) / (others - 1)
    signals = square_of_mean - 2 * along / others + squares / others**2 - variances / others
    norm, norm_se = _root(float(signal), _jackknife(signals))
    if not float(variance) > 0:
        return Statistics(norm, norm_se, float(variance), _jackknife(variances), math.nan, math.nan)
    snr, snr_se = _root(float(signal / variance), _jackknife(signals / variances))
    return Statistics(norm, norm_se, float(variance), _jackknife(variances), snr, snr_se)


def location_and_scale(flow: Flow) -> tuple[float, float] | None:
    """Location and scale of a flow that is a Gaussian of one feature, both learned; None where it is anything else."""
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


def gaussian_variances(location: float, scale: float, points: int) -> dict[str, tuple[float, float]]:
    r"""The variances of all estimators for :math:`q = N(m, s^2)` and the target :math:`\tilde p(x) = e^{-x^2 / 2}`.

    With :math:`x = m + s \epsilon` and one point, the gradients by :math:`m` and :math:`\log s` are

    - ``path-wise``: :math:`x` and :math:`x s \epsilon - 1`, of variances :math:`s^2` and :math:`m^2 s^2 + 2 s^4`;
    - ``path``: :math:`m + (s - 1/s) \epsilon` and that times :math:`s \epsilon`, of variances :math:`(s - 1/s)^2` and
      :math:`m^2 s^2 + 2 (s^2 - 1)^2`;
    - ``score-function-bare``: :math:`f \epsilon / s` and :math:`f (\epsilon^2 - 1)` with
      :math:`f = \log q - \log \tilde p`, a polynomial of second degree in :math:`\epsilon`;
    - ``score-function``: the sample covariance of :math:`f` and these scores, whose variance follows from moments.

    Args:
        location: :math:`m`.
        scale: :math:`s`.
        points: Rows of one gradient; of two or more, for the baseline.

    Returns:
        By estimator, the variances by :math:`m` and by :math:`\log s`.
    """
    m, s, n = location, scale, points
    # f = a + l eps + b eps^2
    a, l, b = 0.5 * m**2 - math.log(s) - 0.5 * math.log(2 * math.pi), m * s, 0.5 * (s**2 - 1)
    path_wise = (s**2, l**2 + 2 * s**4)
    path = ((s - 1 / s) ** 2, l**2 + 2 * (s**2 - 1) ** 2)
    bare = (
        (a**2 + 3 * l**2 + 15 * b**2 + 6 * a * b) / s**2 - m**2,
        2 * a**2 + 10 * (l**2 + 2 * a * b) + 78 * b**2 - (2 * b) ** 2,
    )
    known = {"path-wise": path_wise, "path": path, "path-two-pass": path, "score-function-bare": bare}
    found = {name: (at_location / n, at_scale / n) for name, (at_location, at_scale) in known.items()}
    if n > 1:
        spread = l**2 + 2 * b**2  # of f
        found["score-function"] = (
            _variance_of_covariance((3 * l**2 + 10 * b**2) / s**2, m, spread / s**2, n),
            _variance_of_covariance(10 * l**2 + 60 * b**2, 2 * b, 2 * spread, n),
        )
    return found


def _variance_of_covariance(fourth: float, covariance: float, product: float, n: int) -> float:
    """Variance of the sample covariance of n pairs, from E[(x - Ex)²(y - Ey)²], Cov(x, y) and Var(x) Var(y)."""
    return (fourth - (covariance**2 * (n - 2) - product) / (n - 1)) / n


def _loss(flow: Flow, log_target: LogDensity, points: int, name: str) -> Tensor:
    if name == "path-two-pass":
        x = flow.rsample(points)
        return (flow.frozen_log_prob(x) - log_target(x)).mean()
    return alpha_divergence(flow, log_target, points, name)[0]  # type: ignore[arg-type]


def _statistics_by_group(gradients: Tensor, groups: dict[str, list[nn.Parameter]]) -> dict[str, Statistics]:
    sizes = [sum(p.numel() for p in members) for members in groups.values()]
    parts = zip(groups, gradients.split(sizes, dim=1), strict=True)
    return {ALL: gradient_statistics(gradients)} | {name: gradient_statistics(part) for name, part in parts}


def _jackknife(values: Tensor) -> float:
    """Standard error of a statistic from its values without each of the replicates ``(R,)``."""
    return float(((len(values) - 1) * (values - values.mean()).square().mean()).sqrt())


def _root(square: float, se: float) -> tuple[float, float]:
    """The root of an estimate, and its standard error."""
    if math.isnan(square):
        return math.nan, math.nan
    root = math.sqrt(max(square, 0.0))
    return root, math.sqrt(max(square, 0.0) + se) - root
