"""Objectives for a target: its unnormalised log-density takes the place of rows."""

import math
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pushforward.datasets.targets.base import Target, TargetError, evaluate, show_point, value_and_gradient
from pushforward.evaluate.importance import forward_ess, log_z_estimate, reverse_ess
from pushforward.flows import Flow
from pushforward.flows.random_state import seeded
from pushforward.train.objectives.base import Metrics, Objective, Validation
from pushforward.train.objectives.gradient_estimators import (
    GradientEstimator,
    alpha_divergence,
    alpha_value,
    forward_kl,
    importance_bound,
    log_mean_exp,
)
from pushforward.train.options import ObjectiveOptions

# Samples without density get the largest log-density of the batch minus this: a large finite loss, a weight of zero.
_DEPTH = 1e4
_FIRST_POWER = 0.02

VALIDATION_SAMPLES = 4_000
"""Samples in a validation of a fit."""


class TargetObjective(Objective):
    """A divergence between a flow and a target, estimated from samples of the flow or, if available, of the target.

    - ``reverse-kl``: seeks modes; needs only the log-density of the target.
    - ``alpha``: ``alpha=2`` is the variance of the importance weights; covers the modes that the flow has found.
    - ``forward-kl``: from samples of the target and its score function; without samples, by normalised weights.
    - ``iwae``: the importance-weighted bound.

    Objectives on samples of the flow anneal the target: they begin with the target to a small power times a wide
    Gaussian, and reach the target after a share of the budget, ``train.annealing``. A flow that begins with the target
    itself finds the modes nearby and never learns of the others.

    Args:
        target: The target.
        options: Objective, estimator and their options.
        batch_size: Samples in a step.
        validation_samples: Samples in a validation, from the same noise every time.
        device: The device of the flow.
        seed: Seed of the noise of the validation and of the target's samples.

    Attributes:
        divergence: The one of these four that a subclass fits, under any name.

    Raises:
        TargetError: If the target fails at its own samples.
    """

    divergence: ClassVar[str]

    def __init__(
        self,
        target: Target,
        options: ObjectiveOptions,
        batch_size: int,
        *,
        validation_samples: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.target, self.batch_size, self.seed = target, batch_size, seed
        self.validation_samples = validation_samples
        self.name = options.name
        self.estimator = cast(GradientEstimator, options.gradient)
        self.alpha = {"reverse-kl": 0.0, "forward-kl": 1.0}.get(self.name, options.alpha)
        self.annealing = options.annealing
        self.samples = min(options.importance_samples, batch_size, validation_samples)
        self._exact_samples: Tensor | None = None
        self._target_scores: Tensor | None = None
        held_out = target.sample(validation_samples, seed + 1)
        self._held_out = None if held_out is None else held_out.to(device, torch.get_default_dtype())
        if self.name == "forward-kl" and target.has_samples:
            drawn = target.sample(max(50_000, 10 * batch_size), seed)
            if drawn is None:
                raise TargetError(f"{target.name}: sample() is defined and returned nothing")
            self._exact_samples = drawn.to(device, torch.get_default_dtype())
            self._target_scores = value_and_gradient(target, self._exact_samples)[1]

    @classmethod
    def make(cls, problem: Any, state: Any) -> "TargetObjective":
        return cls(
            problem.target,
            replace(problem.options.objective, name=cls.divergence),
            problem.options.train.batch_size,
            validation_samples=VALIDATION_SAMPLES,
            device=state.device,
            seed=problem.options.seed,
        )

    def draw(self, spent: float) -> tuple[Tensor, Tensor] | float:
        """Samples of the target and its score function, if the objective needs them; else the power of the target."""
        if self._exact_samples is None or self._target_scores is None:
            return min(1.0, _FIRST_POWER + spent / self.annealing) if self.annealing else 1.0
        chosen = torch.randint(len(self._exact_samples), (self.batch_size,), device=self._exact_samples.device)
        return self._exact_samples[chosen], self._target_scores[chosen]

    def loss(self, flow: Flow, batch: Any) -> tuple[Tensor, Tensor]:
        """The estimate of the divergence, up to a constant, and the effective sample size as a share of the samples."""
        if isinstance(batch, tuple):
            x, target_score = batch
            value = forward_kl(flow, x, target_score if self.estimator == "path" else None)
            return value, torch.stack([value.detach(), value.detach().new_tensor(math.nan)])
        log_target = partial(self.log_target, batch)
        if self.name == "iwae":
            n = max(2, self.batch_size // self.samples)
            bound, log_w = importance_bound(flow, log_target, n, self.samples, self.estimator)
            value = -bound
        else:
            value, log_w = alpha_divergence(flow, log_target, self.batch_size, self.estimator, self.alpha)
        shares = torch.softmax(log_w.reshape(-1), 0)
        return value, torch.stack([value.detach(), 1 / (shares.square().sum() * len(shares))])

    def metrics(self, means: list[float]) -> Metrics:
        """The mean loss, and the effective share of the samples for the target as annealed at that time."""
        loss, share = means
        return {"train/loss": loss} | ({} if math.isnan(share) else {"train/effective_share": share})

    @torch.no_grad()
    def validate(self, flow: Flow) -> Validation:
        """The objective on the same noise every time, with log Z and both effective sample sizes."""
        with seeded(self.seed, flow.base.device):
            x, log_q = flow.sample_and_log_prob(self.validation_samples)
        log_p = evaluate(self.target, x)
        if bool(log_p.isnan().any()):  # the first batch was checked; the flow has moved since
            at = show_point(x[int(log_p.isnan().nonzero()[0])])
            raise TargetError(f"{self.target.name}: the log-density is nan at {at}, a sample of the flow in training")
        log_w = (log_p - log_q).cpu().double()
        log_z, se = log_z_estimate(log_w)
        metrics = {
            "val/elbo": float(log_w.mean()),
            "val/log_z": log_z,
            "val/log_z_se": se,
            "val/reverse_ess": reverse_ess(log_w),
        }
        if self._held_out is not None:
            log_q_exact = flow.log_prob(self._held_out)
            exact_log_w = (self.target.log_prob(self._held_out) - log_q_exact).cpu().double()
            metrics["val/forward_ess"] = forward_ess(exact_log_w, self.target.log_z)
            metrics["val/forward_kl"] = float(exact_log_w.mean()) - (self.target.log_z or 0.0)
            if self.name == "forward-kl":
                note = self._without_density(self._held_out, log_q_exact)
                return Validation(metrics["val/forward_kl"], metrics, _standard_error(exact_log_w), note)
        # As in training: a sample without density must not make the loss infinite, or the first weights would be kept.
        log_w = _floored(log_w)
        if self.name == "iwae":
            bounds = log_w[: len(log_w) // self.samples * self.samples].reshape(self.samples, -1)
            return Validation(-float(log_mean_exp(bounds).mean()), metrics, _standard_error(log_w))
        return Validation(float(alpha_value(log_w, self.alpha)), metrics, _standard_error(log_w))

    def _without_density(self, samples: Tensor, log_q: Tensor) -> str:
        """Which sample of the target has no density under the flow, in words; empty if each has one."""
        bad = (~log_q.isfinite()).nonzero()
        if not len(bad):
            return ""
        at, value = show_point(samples[bad[0, 0]]), float(log_q[bad[0, 0]])
        return f"the log-density of the flow is {value:g} at {at}, a sample of {self.target.name}"

    def log_target(self, power: float, x: Tensor) -> Tensor:
        """Log-density ``(n,)`` of the annealed target at samples ``(n, D)``; its gradient is the score function.

        Args:
            power: Power of the target, 1 for the target itself.
            x: The samples.
        """
        if self.estimator == "score-function":  # needs no gradient, and the target may have none
            with torch.no_grad():
                log_p = _floored(evaluate(self.target, x))
        else:
            value, target_score = value_and_gradient(self.target, x)
            # Without density the score function is NaN; zero leaves the sample out of the gradient.
            target_score = torch.where((value == -torch.inf)[..., None], 0.0, target_score)
            log_p = _floored(value) + ((x - x.detach()) * target_score).sum(-1)
        if power == 1.0:
            return log_p
        # The other end is a wide Gaussian, or uniform on a box: modes that are far apart are still connected there.
        wide = 0.0 if self.target.bounds else -0.5 * (x / (2 * self.target.spread)).square().sum(-1)
        return power * log_p + (1 - power) * wide


class ReverseKl(TargetObjective):
    """The reverse KL divergence, which seeks modes."""

    divergence = "reverse-kl"
    uses = ("gradient", "annealing")


class Alpha(TargetObjective):
    """The alpha divergence."""

    divergence = "alpha"
    uses = ("gradient", "annealing", "alpha")


class ForwardKl(TargetObjective):
    """The forward KL divergence, by samples of the target or by weights."""

    divergence = "forward-kl"
    uses = ("gradient", "annealing")


class ImportanceBound(TargetObjective):
    """The importance-weighted bound."""

    divergence = "iwae"
    uses = ("gradient", "annealing", "importance_samples")


def _standard_error(log_w: Tensor) -> float:
    """Standard error of a mean log-weight: the tolerance of a validation, as new samples cannot be overfitted."""
    return float(log_w.std()) / math.sqrt(len(log_w))


def _floored(values: Tensor) -> Tensor:
    """Replace ``-inf`` by a floor relative to the largest value, since log-densities have an unknown constant."""
    return torch.where(values == -torch.inf, values.max() - _DEPTH, values)
