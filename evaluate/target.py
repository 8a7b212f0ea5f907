"""The numbers of a fit to a target: what points of the flow weigh, and what the flow gives points of the truth."""

import math
from typing import Any

import torch
from torch import Tensor

from pushforward.datasets.tables.schema import Column, Schema
from pushforward.datasets.targets.base import Target, TargetError, evaluate
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.importance import forward_ess, log_z_estimate, pareto_k, reverse_ess
from pushforward.flows import Flow

_PASS = 5_000


def weighted_sample(flow: Flow, target: Target, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points ``(n, D)`` of a flow and their log-weights ``(n,)`` on the CPU; torch's random state is left as it was."""
    points, log_q = draw(flow, n, seed)
    with torch.no_grad():
        log_p = torch.cat([evaluate(target, part) for part in points.split(_PASS)])
    return points, log_p.cpu().double() - log_q.double()


@torch.no_grad()
def draw(flow: Flow, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of a flow and their log-densities, on the CPU."""
    devices = [flow.base.device] if flow.base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        parts = [flow.sample_and_log_prob(min(_PASS, n - begin)) for begin in range(0, n, _PASS)]
    return torch.cat([x.cpu() for x, _ in parts]), torch.cat([log_q.cpu() for _, log_q in parts])


def numbers_of(target: Target, log_w: Tensor, truth: Tensor | None, log_q: Tensor | None) -> dict[str, Any]:
    """What importance weights say of a fit; None where the target does not know its samples or its constant.

    Args:
        target: The target.
        log_w: Log-weights ``(n,)`` of points of the flow.
        truth: Exact samples of the target ``(m, D)`` in float64, or None.
        log_q: The flow's log-densities of them ``(m,)``, or None.
    """
    log_z, log_z_se = log_z_estimate(log_w)
    found: dict[str, float | None] = {
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
    if truth is not None and log_q is not None:
        of_truth = target.log_prob(truth) - log_q
        scale = 1 / math.sqrt(len(truth))
        found["forward_ess"] = forward_ess(of_truth, target.log_z)
        found["forward_pareto_k"] = pareto_k(of_truth)
        found |= {"test_nll": float(-log_q.mean()), "test_nll_se": float(log_q.std()) * scale}
        if target.log_z is not None:
            found |= {
                "kl_to_truth": float(of_truth.mean()) - target.log_z,
                "kl_to_truth_se": float(of_truth.std()) * scale,
            }
    return found


@torch.no_grad()
def log_prob_of(flow: Flow, points: Tensor) -> Tensor:
    """Log-densities ``(n,)`` of points ``(n, D)``, a part at a time, without gradients."""
    return torch.cat([flow.log_prob(part) for part in points.split(_PASS)])


class _AsTrained(Target):
    """A target that only knows the precision and the device it is trained in: points are moved there."""

    def __init__(self, target: Target, device: torch.device) -> None:
        self.name, self.features, self.bounds, self.spread = target.name, target.features, target.bounds, target.spread
        self.log_z, self.entropy, self.description = target.log_z, target.entropy, target.description
        self._target, self._device = target, device

    def log_prob(self, x: Tensor) -> Tensor:
        moved = x.to(self._device, torch.get_default_dtype())
        return self._target.log_prob(moved).to(x.device, x.dtype)

    def sample(self, n: int, seed: int) -> Tensor | None:
        return self._target.sample(n, seed)


def for_numbers(target: Target, flow: Flow, device: torch.device) -> Target:
    """The target for what is computed in float64 on the CPU, which a user's function may not be made for."""
    with torch.no_grad():
        points = flow.sample(8).cpu().double()
        try:
            evaluate(target, points)
        except TargetError:
            return _AsTrained(target, device)
    return target


def density_of(flow: Flow, drawn: Tensor) -> FittedDensity:
    """A flow as the density of columns ``x1``, ``x2``, ..., whose range is that of its samples."""
    ranges = zip(drawn.amin(0).tolist(), drawn.amax(0).tolist(), strict=True)
    columns = tuple(
        Column(f"x{i}", "double", minimum=low, maximum=high, step=None, offset=None, distinct=len(drawn), ties=0.0)
        for i, (low, high) in enumerate(ranges, start=1)
    )
    return FittedDensity(flow, Schema(columns), [0.0] * len(columns))
