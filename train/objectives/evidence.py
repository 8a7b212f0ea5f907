"""The evidence lower bound of a Bayesian network: the objective of posteriors over weights."""

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pushforward.common.errors import ConfigError
from pushforward.flows import Flow
from pushforward.flows.bayesian.density import BayesianNetwork
from pushforward.train.objectives.base import Metrics, Validation
from pushforward.train.objectives.likelihood import Batch, Likelihood, OfRows, RowTensors, rows_of

Gradient = Literal["path", "path-wise"]


class Evidence(OfRows):
    r"""Minus the evidence lower bound of rows, in nats a row, for a flow whose base is a ``BayesianNetwork``.

    The bound :math:`E_q[\log p(y | x, w)] - KL(q || p)` is estimated from a few weight samples, the same for all rows
    of a batch. Validation draws the weights of the predictive density from the posterior, always by the same seed,
    keeps them in the network, and computes the NLL of the validation rows under that density.

    Args:
        train: Training rows with their context.
        validation: Validation rows, likewise.
        batch_size: Rows in a step.
        step: Steps already done, if training is resumed.
        samples: Weight samples in a step.
        gradient: Gradient estimator of the divergence from the prior. ``"path-wise"`` differentiates
            :math:`\log q_\theta(w(\theta))` by every :math:`\theta`; ``"path"`` holds the parameters of the density
            constant. This drops a term of mean zero, so that no noise is left where the posterior is exact.
        kl_warmup: Share of the budget over which the weight of the divergence grows to 1. Without it, units are pruned
            before they have learned anything.
        seed: Seed of the order of the rows, and of the weights in validation.
        offset: As for :class:`Likelihood`.

    Raises:
        ValueError: If a number is out of range, or there are no rows.

    Cost:
        A step is ``samples * batch_size`` passes of the network, and ``samples`` of the posterior.

    References:
        - Blundell et al. (2015), Weight Uncertainty in Neural Networks, https://arxiv.org/abs/1505.05424, eq. 1.
        - Roeder et al. (2017), Sticking the Landing, https://arxiv.org/abs/1703.09194, eq. 8: the path gradient.
    """

    loss_key = "nll"
    loss_name = "NLL"
    uses = ("gradient",)
    takes_weights, is_likelihood, only_own_flows = True, True, True

    def __init__(
        self,
        train: RowTensors,
        validation: RowTensors,
        batch_size: int,
        step: int = 0,
        *,
        samples: int = 8,
        gradient: Gradient = "path",
        kl_warmup: float = 0.2,
        seed: int = 0,
        offset: float = 0.0,
    ) -> None:
        if samples < 1:
            raise ValueError(f"Evidence: expected samples of at least 1; got {samples}")
        if not 0 <= kl_warmup < 1:
            raise ValueError(f"Evidence: expected kl_warmup of at least 0 and below 1; got {kl_warmup}")
        if gradient not in get_args(Gradient):
            raise ValueError(f"Evidence: expected gradient 'path' or 'path-wise'; got {gradient!r}")
        if len(train) == 0 or len(validation) == 0:
            raise ValueError(f"Evidence: expected training and validation rows; got {len(train)} and {len(validation)}")
        self.rows = Likelihood(train, validation, batch_size, step, seed=seed, offset=offset)
        self.batch_size, self.train_rows = self.rows.batch_size, len(train)
        self.samples, self.kl_warmup, self.seed = samples, kl_warmup, seed
        self.gradient: Gradient = gradient

    @classmethod
    def make(cls, problem: Any, state: Any) -> "Evidence":
        train, validation, place = rows_of(problem, state)
        gradient = problem.options.objective.gradient
        if gradient not in get_args(Gradient):
            raise ConfigError(
                f"train.gradient: expected auto, path or path-wise for a Bayesian network; got {gradient}"
            )
        return cls(train, validation, problem.options.train.batch_size, **place, gradient=gradient)

    def draw(self, spent: float) -> tuple[Batch, float]:
        """The next batch, and the weight of the divergence from the prior."""
        return self.rows.draw(spent), min(1.0, spent / self.kl_warmup) if self.kl_warmup else 1.0

    def loss(self, flow: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Minus the bound; the expected NLL of the batch and the divergence are logged."""
        (x, context, row_weights), share = batch
        network = network_of(flow)
        weights, log_q = network.posterior.rsample_and_log_prob(self.samples, path=self.gradient == "path")
        terms = log_likelihoods(flow, x, context, weights)
        nll = -(terms if row_weights is None else row_weights * terms).mean(1)
        divergence = (log_q - network.log_prior(weights)) / self.train_rows
        loss = (share * divergence + nll).mean()
        return loss, torch.stack([nll.detach().mean(), divergence.detach().mean(), loss.detach().new_tensor(share)])

    def metrics(self, means: list[float]) -> Metrics:
        """The expected NLL, and the divergence from the prior with its weight."""
        nll, divergence, share = means
        return {"train/nll": nll, "train/kl": divergence, "train/kl_weight": share}

    def validate(self, flow: Any) -> Validation:
        """The NLL of the validation rows under the predictive density."""
        network_of(flow).draw_weights(self.seed)
        found = self.rows.validate(flow)
        se = found.metrics["val/nll_se"]
        # Later weights are nearer to the posterior, which does not overfit.
        return replace(found, tolerance=se if math.isfinite(se) else 0.0)


def log_likelihoods(flow: Flow, x: Tensor, context: Tensor | None, weights: Tensor) -> Tensor:
    """Log-densities ``(s, n)`` of rows ``(n, D)`` given context ``(n, C)`` and each of the weights ``(s, size)``."""
    network = network_of(flow)
    embedded = flow.embed(context)
    z, log_det = flow.bijection(x.to(network.dtype), embedded)
    terms: Tensor = network.log_likelihood(z, embedded, weights) + log_det
    return terms


def network_of(flow: Any) -> BayesianNetwork:
    """Return the Bayesian network that is the base of a flow.

    Raises:
        TypeError: If the base is another one.
    """
    if isinstance(flow, Flow) and isinstance(flow.base, BayesianNetwork):
        return flow.base
    found = f"a base {type(flow.base).__name__}" if isinstance(flow, Flow) else type(flow).__name__
    raise TypeError(f"Evidence: expected a flow whose base is a BayesianNetwork; got {found}")
