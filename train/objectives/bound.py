"""Bounds on the likelihood of rows as an objective: how autoencoders learn."""

from typing import Any, Literal

import torch
from torch import Tensor

from pushforward.datasets.tables.splits import spread
from pushforward.evaluate.likelihood import nll_from
from pushforward.flows.vae.autoencoder import Autoencoder, Estimator
from pushforward.train.objectives.base import Metrics, Validation
from pushforward.train.objectives.likelihood import Likelihood, Rows

Bound = Literal["elbo", "iwae"]

OBJECTIVES = ("elbo", "iwae")
"""Names of the objectives by which an autoencoder is fitted to rows."""

MOST_VALIDATION_ROWS = 2_000
"""Validation rows that are looked at: a bound takes many passes a row."""


class BoundObjective:
    """Minus the evidence bound, or the importance-weighted one, of rows under an autoencoder.

    The weight of the prior and posterior terms grows from 0 to 1 over the first part of the budget, so that latent
    features are not given up before the decoder has learned to use them. Validation is by the importance-weighted
    bound, whatever is trained, and always with the same noise.

    Args:
        train: Training rows ``(n, D)`` as the decoder takes them.
        validation: Validation rows, likewise; ``MOST_VALIDATION_ROWS`` of them are used.
        batch_size: Rows in one step.
        step: Steps done, where training goes on.
        bound: The bound that is trained.
        samples: Latent points a row in each step.
        estimator: Of the posterior's gradient: ``total``, ``path`` (ELBO) or ``dreg`` (IWAE).
        kl_warmup: Share of the budget until the full weight.
        validation_samples: Latent points a row in validation.
        seed: Decides the noise of the validation.

    Raises:
        ValueError: If the bound is unknown, a number is out of range, or there are no rows.
    """

    loss_key = "loss"
    loss_name = "loss"

    def __init__(
        self,
        train: Tensor,
        validation: Tensor,
        batch_size: int,
        step: int = 0,
        *,
        bound: Bound = "elbo",
        samples: int = 1,
        estimator: Estimator = "total",
        kl_warmup: float = 0.1,
        validation_samples: int = 64,
        seed: int = 0,
    ) -> None:
        if bound not in ("elbo", "iwae"):
            raise ValueError(f"BoundObjective: expected bound 'elbo' or 'iwae'; got {bound!r}")
        if not 0 <= kl_warmup <= 1:
            raise ValueError(f"BoundObjective: expected kl_warmup in [0, 1]; got {kl_warmup}")
        if len(train) == 0 or len(validation) == 0:
            raise ValueError(
                f"BoundObjective: expected training and validation rows; got {len(train)} and {len(validation)}"
            )
        self.validation = validation[torch.from_numpy(spread(len(validation), MOST_VALIDATION_ROWS))]
        self.rows = Likelihood(Rows(train), Rows(self.validation), batch_size, step)
        self.points = self.rows.points
        self.bound, self.samples, self.estimator = bound, samples, estimator
        self.kl_warmup, self.validation_samples, self.seed = kl_warmup, validation_samples, seed

    def draw(self, spent: float) -> tuple[Tensor, float]:
        """The next batch, and the weight of the prior and posterior terms."""
        return self.rows.draw(spent)[0], min(1.0, spent / self.kl_warmup) if self.kl_warmup else 1.0

    def loss(self, flow: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Minus the mean bound of a batch."""
        assert isinstance(flow, Autoencoder)  # what this is an objective of
        x, weight = batch
        bound = flow.elbo if self.bound == "elbo" else flow.iwae_bound
        value = -bound(x, self.samples, estimator=self.estimator, beta=weight).mean()
        return value, torch.stack([value.detach(), value.new_tensor(weight)])

    def metrics(self, means: list[float]) -> Metrics:
        """The mean loss, and the weight."""
        return {"train/loss": means[0], "train/kl_weight": means[1]}

    def at(self, step: int) -> Metrics:
        """The epoch."""
        return self.rows.at(step)

    @torch.no_grad()
    def validate(self, flow: Any) -> Validation:
        """Minus the mean importance-weighted bound of the validation rows."""
        assert isinstance(flow, Autoencoder)
        with torch.random.fork_rng(devices=[self.validation.device] if self.validation.is_cuda else []):
            torch.manual_seed(self.seed)
            bounds = flow.log_prob_bound(self.validation, self.validation_samples)
        found = nll_from(bounds.double().cpu().numpy())
        return Validation(found.nll, {"val/bound_se": found.se})
