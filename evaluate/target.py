"""Metrics of a flow fitted to an unnormalised target: log Z, effective sample sizes, divergences."""

import math

import torch
from torch import Tensor

from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.targets.base import Target, TargetError, evaluate
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.importance import forward_ess, log_z_estimate, pareto_k, reverse_ess
from pushforward.flows import Flow
from pushforward.flows.random_state import seeded

BATCH_SIZE = 5_000
"""Samples a batch."""


def weighted_sample(flow: Flow, target: Target, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw samples ``(n, D)`` of a flow with their log importance weights ``(n,)`` in nats, on the CPU."""
    x, log_q = sample_and_log_prob(flow, n, seed)
    with torch.no_grad():
        log_p = torch.cat([evaluate(target, batch) for batch in x.split(BATCH_SIZE)])
    return x, log_p.cpu().double() - log_q.double()


@torch.no_grad()
def sample_and_log_prob(flow: Flow, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw samples ``(n, D)`` of a flow with their log-densities, on the CPU; torch's random state stays unchanged."""
    with seeded(seed, flow.base.device):
        batches = [flow.sample_and_log_prob(min(BATCH_SIZE, n - start)) for start in range(0, n, BATCH_SIZE)]
    return torch.cat([x.cpu() for x, _ in batches]), torch.cat([log_q.cpu() for _, log_q in batches])


def target_metrics(
    target: Target, log_w: Tensor, exact_samples: Tensor | None, log_q: Tensor | None
) -> dict[str, float | None]:
    """Compute the metrics of a fit from importance weights.

    Args:
        target: The target.
        log_w: Log importance weights ``(n,)`` of samples of the flow.
        exact_samples: Exact samples of the target ``(m, D)`` in float64, or None.
        log_q: Log-densities ``(m,)`` of the exact samples under the flow, or None.

    Returns:
        Metrics by name, in nats or as shares; None where one needs exact samples or a known log Z.
    """
    log_z, log_z_se = log_z_estimate(log_w)
    metrics: dict[str, float | None] = {
        "elbo": float(log_w.mean()),
        "elbo_se": float(log_w.std()) / math.sqrt(len(log_w)),
        "log_z": log_z,
        "log_z_se": log_z_se,
        "log_z_known": target.log_z,
        "reverse_ess": reverse_ess(log_w),
        "pareto_k": pareto_k(log_w),
        "forward_ess": None,
        "forward_pareto_k": None,
        "kl_to_truth": None,
        "kl_to_truth_se": None,
        "test_nll": None,
        "test_nll_se": None,
        "entropy": target.entropy,
    }
    if exact_samples is not None and log_q is not None:
        exact_log_w = target.log_prob(exact_samples) - log_q
        scale = 1 / math.sqrt(len(exact_samples))
        metrics["forward_ess"] = forward_ess(exact_log_w, target.log_z)
        metrics["forward_pareto_k"] = pareto_k(exact_log_w)
        metrics |= {"test_nll": float(-log_q.mean()), "test_nll_se": float(log_q.std()) * scale}
        if target.log_z is not None:
            metrics |= {
                "kl_to_truth": float(exact_log_w.mean()) - target.log_z,
                "kl_to_truth_se": float(exact_log_w.std()) * scale,
            }
    return metrics


class _ConvertingTarget(Target):
    """A target that is evaluated in torch's default dtype on a given device, whatever the rows are."""

    def __init__(self, target: Target, device: torch.device) -> None:
        self.name, self.features, self.bounds, self.spread = target.name, target.features, target.bounds, target.spread
        self.log_z, self.entropy, self.description = target.log_z, target.entropy, target.description
        self._target, self._device = target, device

    def log_prob(self, x: Tensor) -> Tensor:
        converted = x.to(self._device, torch.get_default_dtype())
        return self._target.log_prob(converted).to(x.device, x.dtype)

    def sample(self, n: int, seed: int) -> Tensor | None:
        return self._target.sample(n, seed)


def accept_float64(target: Target, flow: Flow, device: torch.device) -> Target:
    """Return a target that accepts float64 rows on the CPU; wrap a user's function that does not.

    Args:
        target: The target.
        flow: The flow that draws rows to try.
        device: Where the target was evaluated in training.
    """
    with torch.no_grad():
        with seeded(0, flow.base.device):
            x = flow.sample(8).cpu().double()
        try:
            evaluate(target, x)
        except TargetError:
            return _ConvertingTarget(target, device)
    return target


def as_fitted_density(flow: Flow, samples: Tensor) -> FittedDensity:
    """Wrap a flow as a density of columns ``x1``, ``x2``, ..., with the ranges of its samples ``(n, D)``."""
    ranges = zip(samples.amin(0).tolist(), samples.amax(0).tolist(), strict=True)
    columns = tuple(
        Column(f"x{i}", "double", minimum=low, maximum=high, step=None, offset=None, distinct=len(samples), ties=0.0)
        for i, (low, high) in enumerate(ranges, start=1)
    )
    return FittedDensity(flow, Schema(columns), [0.0] * len(columns))
