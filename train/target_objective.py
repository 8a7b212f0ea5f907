"""Objectives on a target: an unnormalised log-density takes the place of rows."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pushforward.datasets.target import Target, value_and_force
from pushforward.evaluate.importance import forward_ess, log_z_estimate, reverse_ess
from pushforward.flows import Flow
from pushforward.train.config import TrainConfig
from pushforward.train.estimators import Estimator, alpha_divergence, forward_kl, importance_bound
from pushforward.train.objective import Metrics, Validation

# What counts for -inf, where there is nothing to follow: a loss that is seen, and a weight of zero.
_LOWEST = -1e4

_FIRST_POWER = 0.02

OBJECTIVES = ("reverse-kl", "alpha", "forward-kl", "iwae")


class TargetObjective:
    """A divergence between a flow and a target, from points of the flow, or of the target where it has samples.

    - ``reverse-kl``: seeks modes; needs the target's log-density alone.
    - ``alpha``: ``alpha=2`` is the variance of the importance weights; covers modes as far as the flow has found them.
    - ``forward-kl``: from the target's own samples with its forces; without samples by normalised weights.
    - ``iwae``: the importance-weighted bound.

    What is made of points of the flow begins with the target to a small power times a wide Gaussian, and reaches the
    target itself after a share of the budget, ``train.annealing``: a flow that begins with the target finds the modes
    that are near, and never learns of the others.

    Args:
        target: The target.
        told: Objective, estimator and their options; ``auto`` is the reverse KL and the path gradient.
        batch_size: Points in one step.
        validation_points: Points of a validation, the same noise every time.
        device: Where the flow is.
        seed: Decides the noise of the validation and the target's samples.

    Raises:
        ValueError: If the estimator does not exist for the objective.
    """

    loss_key = "loss"
    loss_name = "loss"

    def __init__(
        self,
        target: Target,
        told: TrainConfig,
        batch_size: int,
        validation_points: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.target, self.points, self.seed = target, batch_size, seed
        self.validation_points = validation_points
        self.name = "reverse-kl" if told.objective == "auto" else told.objective
        if self.name not in OBJECTIVES:
            raise ValueError(f"train.objective: expected one of {', '.join(OBJECTIVES)} for a target; got {self.name}")
        self.estimator: Estimator = "path" if told.gradient == "auto" else told.gradient
        self.alpha = {"reverse-kl": 0.0, "forward-kl": 1.0}.get(self.name, told.alpha)
        self.annealing = told.annealing
        self.samples = min(told.importance_samples, batch_size)
        if self.alpha == 1 and self.estimator == "path-wise" and not target.has_samples:
            raise ValueError(
                f"train.gradient: {target.name} has no samples, and without them the forward KL has no path-wise "
                f"gradient; take train.gradient=path"
            )
        self._truth: Tensor | None = None
        self._forces: Tensor | None = None
        truth = target.sample(validation_points, seed + 1)
        self._validation_truth = None if truth is None else truth.to(device, torch.get_default_dtype())
        if self.name == "forward-kl" and target.has_samples:
            drawn = target.sample(max(50_000, 10 * batch_size), seed)
            assert drawn is not None  # has_samples has said so
            self._forces = value_and_force(target, drawn)[1].to(device, torch.get_default_dtype())
            self._truth = drawn.to(device, torch.get_default_dtype())

    def draw(self, spent: float) -> tuple[Tensor, Tensor] | float:
        """Samples of the truth with their forces, where the objective is made of them; else the target's power."""
        if self._truth is None or self._forces is None:
            return min(1.0, _FIRST_POWER + spent / self.annealing) if self.annealing else 1.0
        rows = torch.randint(len(self._truth), (self.points,), device=self._truth.device)
        return self._truth[rows], self._forces[rows]

    def loss(self, flow: Flow, batch: Any) -> tuple[Tensor, Tensor]:
        """The estimate of the divergence, up to the target's constant, and the share of effective points."""
        if isinstance(batch, tuple):
            x, force = batch
            value = forward_kl(flow, x, force if self.estimator == "path" else None)
            return value, torch.stack([value.detach(), value.detach().new_tensor(math.nan)])
        log_target = partial(self._log_target, batch)
        if self.name == "iwae":
            n = max(2, self.points // self.samples)
            bound, log_w = importance_bound(flow, log_target, n, self.samples, self.estimator)
            value = -bound
        else:
            value, log_w = alpha_divergence(flow, log_target, self.points, self.estimator, self.alpha)
        shares = torch.softmax(log_w.reshape(-1), 0)
        return value, torch.stack([value.detach(), 1 / (shares.square().sum() * len(shares))])

    def metrics(self, means: list[float]) -> Metrics:
        """The mean loss and effective share of the last steps."""
        loss, share = means
        return {"train/loss": loss} | ({} if math.isnan(share) else {"train/reverse_ess": share})

    def at(self, step: int) -> Metrics:
        """Nothing besides."""
        return {}

    @torch.no_grad()
    def validate(self, flow: Flow) -> Validation:
        """The objective on noise that is the same every time, with log Z and both effective sample sizes."""
        with torch.random.fork_rng(devices=[flow.base.device] if flow.base.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            x, log_q = flow.sample_and_log_prob(self.validation_points)
        log_w = (self.target.log_prob(x) - log_q).double().cpu()
        log_z, se = log_z_estimate(log_w)
        metrics = {
            "val/elbo": float(log_w.mean()),
            "val/log_z": log_z,
            "val/log_z_se": se,
            "val/reverse_ess": reverse_ess(log_w),
        }
        loss = -metrics["val/elbo"]
        if self._validation_truth is not None:
            on_truth = self._validation_truth
            log_p = flow.log_prob(on_truth)
            of_truth = (self.target.log_prob(on_truth) - log_p).double().cpu()
            metrics["val/forward_ess"] = forward_ess(of_truth, self.target.log_z)
            metrics["val/forward_kl"] = float(of_truth.mean()) - (self.target.log_z or 0.0)
        if self.name == "forward-kl":
            loss = metrics.get("val/forward_kl", _forward_kl(log_w))
        elif self.name == "alpha" and self.alpha > 0:
            loss = _renyi(log_w, self.alpha)
        elif self.name == "iwae":
            rows = log_w[: len(log_w) // self.samples * self.samples].reshape(self.samples, -1)
            loss = -float((torch.logsumexp(rows, 0) - math.log(self.samples)).mean())
        return Validation(loss, metrics)

    def _log_target(self, power: float, x: Tensor) -> Tensor:
        # Points without density say nothing by a gradient, and -inf would make one of NaN.
        log_p = self.target.log_prob(x).clamp_min(_LOWEST)
        if power == 1.0:
            return log_p
        # A bridge from a wide Gaussian, or from the uniform law of a box, to the target: modes that are far apart are
        # still one where the flow learns to reach them.
        wide = 0.0 if self.target.bounds else -0.5 * (x / (2 * self.target.spread)).square().sum(-1)
        return power * log_p + (1 - power) * wide


def _forward_kl(log_w: Tensor) -> float:
    log_z = torch.logsumexp(log_w, 0) - math.log(len(log_w))
    return float((torch.softmax(log_w, 0) * log_w.nan_to_num(neginf=0.0)).sum() - log_z)


def _renyi(log_w: Tensor, alpha: float) -> float:
    if alpha == 1:
        return _forward_kl(log_w)
    return float(torch.logsumexp(alpha * log_w, 0) - math.log(len(log_w))) / (alpha * (alpha - 1))
