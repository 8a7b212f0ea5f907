"""Objectives on a target: an unnormalised log-density takes the place of rows."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pushforward.config.schema import TrainConfig
from pushforward.datasets.targets.base import Target, TargetError, evaluate, show_point, value_and_force
from pushforward.evaluate.importance import forward_ess, log_z_estimate, reverse_ess
from pushforward.flows import Flow
from pushforward.train.objectives.base import Metrics, Validation
from pushforward.train.objectives.gradient_estimators import (
    Estimator,
    alpha_divergence,
    alpha_value,
    forward_kl,
    importance_bound,
    log_mean_exp,
)

# How far below the best point of a batch a point counts that has no density: a loss that is seen, a weight of zero.
_DEPTH = 1e4
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
        batch_size: Rows in one step.
        validation_points: Rows of a validation, the same noise every time.
        device: Where the flow is.
        seed: Decides the noise of the validation and the target's samples.

    Raises:
        TargetError: If the target fails at its own samples.
    """

    loss_key = "loss"
    loss_name = "loss"

    def __init__(
        self,
        target: Target,
        told: TrainConfig,
        batch_size: int,
        *,
        validation_points: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.target, self.points, self.seed = target, batch_size, seed
        self.validation_points = validation_points
        self.name = objective_name(told)
        self.estimator: Estimator = "path" if told.gradient == "auto" else told.gradient
        self.alpha = {"reverse-kl": 0.0, "forward-kl": 1.0}.get(self.name, told.alpha)
        self.annealing = told.annealing
        self.samples = min(told.importance_samples, batch_size, validation_points)
        self._truth: Tensor | None = None
        self._forces: Tensor | None = None
        truth = target.sample(validation_points, seed + 1)
        self._validation_truth = None if truth is None else truth.to(device, torch.get_default_dtype())
        if self.name == "forward-kl" and target.has_samples:
            drawn = target.sample(max(50_000, 10 * batch_size), seed)
            if drawn is None:
                raise TargetError(f"{target.name}: sample() is defined and returned nothing")
            self._truth = drawn.to(device, torch.get_default_dtype())
            self._forces = value_and_force(target, self._truth)[1]

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
        """The mean loss of the last steps, and the share of effective points for the target as sharp as it was then."""
        loss, share = means
        return {"train/loss": loss} | ({} if math.isnan(share) else {"train/effective_share": share})

    def at(self, step: int) -> Metrics:
        """Nothing besides."""
        return {}

    @torch.no_grad()
    def validate(self, flow: Flow) -> Validation:
        """The objective on noise that is the same every time, with log Z and both effective sample sizes."""
        with torch.random.fork_rng(devices=[flow.base.device] if flow.base.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            x, log_q = flow.sample_and_log_prob(self.validation_points)
        log_p = evaluate(self.target, x)
        if bool(log_p.isnan().any()):  # the first batch was checked; these points are of a flow that has learned
            at = show_point(x[int(log_p.isnan().nonzero()[0])])
            raise TargetError(f"{self.target.name}: the log-density is nan at {at}, a point that the flow has come to")
        log_w = (log_p - log_q).cpu().double()
        log_z, se = log_z_estimate(log_w)
        metrics = {
            "val/elbo": float(log_w.mean()),
            "val/log_z": log_z,
            "val/log_z_se": se,
            "val/reverse_ess": reverse_ess(log_w),
        }
        if self._validation_truth is not None:
            on_truth = self._validation_truth
            of_truth = (self.target.log_prob(on_truth) - flow.log_prob(on_truth)).cpu().double()
            metrics["val/forward_ess"] = forward_ess(of_truth, self.target.log_z)
            metrics["val/forward_kl"] = float(of_truth.mean()) - (self.target.log_z or 0.0)
            if self.name == "forward-kl":
                return Validation(metrics["val/forward_kl"], metrics, _noise(of_truth))
        # As in training: a point without density is bad, and not infinitely so, or no weights would be the best.
        log_w = _floored(log_w)
        if self.name == "iwae":
            rows = log_w[: len(log_w) // self.samples * self.samples].reshape(self.samples, -1)
            return Validation(-float(log_mean_exp(rows).mean()), metrics, _noise(log_w))
        return Validation(float(alpha_value(log_w, self.alpha)), metrics, _noise(log_w))

    def _log_target(self, power: float, x: Tensor) -> Tensor:
        if self.estimator == "score-function":  # which takes the value alone: the target may have no gradient
            with torch.no_grad():
                log_p = _floored(evaluate(self.target, x))
        else:
            value, force = value_and_force(self.target, x)
            # Where the density is zero there is nothing to follow, and a gradient of NaN says nothing.
            force = torch.where((value == -torch.inf)[..., None], 0.0, force)
            log_p = _floored(value) + ((x - x.detach()) * force).sum(-1)
        if power == 1.0:
            return log_p
        # A bridge from a wide Gaussian, or from the uniform law of a box, to the target: modes that are far apart are
        # still one where the flow learns to reach them.
        wide = 0.0 if self.target.bounds else -0.5 * (x / (2 * self.target.spread)).square().sum(-1)
        return power * log_p + (1 - power) * wide


def objective_name(told: TrainConfig) -> str:
    """The objective on a target: the reverse KL unless another is asked for."""
    return "reverse-kl" if told.objective == "auto" else told.objective


def _noise(log_w: Tensor) -> float:
    """Standard error of a mean log-weight: points of a flow never run out, so that later weights are not overfitted."""
    return float(log_w.std()) / math.sqrt(len(log_w))


def _floored(values: Tensor) -> Tensor:
    """Values with a floor far below the largest in place of ``-inf``; whatever constant they have in common."""
    return torch.where(values == -torch.inf, values.max() - _DEPTH, values)
