"""Lower bounds on the likelihood of rows: the objective of variational autoencoders."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pushforward.common.errors import ConfigError
from pushforward.datasets.tables.splits import evenly_spaced
from pushforward.evaluate.likelihood import nll_from
from pushforward.flows.random_state import seeded
from pushforward.flows.vae.autoencoder import Autoencoder, Estimator
from pushforward.train.objectives.base import Metrics, Validation
from pushforward.train.objectives.likelihood import Likelihood, OfRows, RowTensors

BoundName = Literal["elbo", "iwae"]

MOST_VALIDATION_ROWS = 2_000
"""Most validation rows that are used: a bound takes many passes a row."""


class BoundObjective(OfRows):
    """Minus the evidence lower bound (ELBO), or the importance-weighted bound (IWAE), of rows under an autoencoder.

    The weight of the prior and posterior terms grows from 0 to 1 over the first part of the budget, which prevents
    posterior collapse before the decoder uses the latent features. Validation always uses the importance-weighted
    bound, with the same noise every time.

    Args:
        train: Training rows ``(n, D)`` in the units of the decoder.
        validation: Validation rows, likewise; ``MOST_VALIDATION_ROWS`` of them are used.
        batch_size: Rows in a step.
        step: Steps already done, if training is resumed.
        bound: The bound to maximise.
        samples: Latent samples a row in each step.
        estimator: Gradient estimator for the posterior: ``path-wise``, ``path`` (ELBO) or ``dreg`` (IWAE).
        kl_warmup: Share of the budget until the weight is 1.
        validation_samples: Latent samples a row in validation.
        seed: Seed of the noise of the validation.
        numbers: Number of each validation row where it came from, for messages; None for their places.

    Attributes:
        bound: The bound; a subclass says which one it fits, under any name.

    Raises:
        ValueError: If the bound is unknown, a number is out of range, or there are no rows.
    """

    is_likelihood = True
    bound: BoundName

    def __init__(
        self,
        train: Tensor,
        validation: Tensor,
        batch_size: int,
        step: int = 0,
        *,
        bound: BoundName = "elbo",
        samples: int = 1,
        estimator: Estimator = "path-wise",
        kl_warmup: float = 0.1,
        validation_samples: int = 64,
        seed: int = 0,
        numbers: NDArray[np.intp] | None = None,
    ) -> None:
        if bound not in ("elbo", "iwae"):
            raise ValueError(f"BoundObjective: expected bound 'elbo' or 'iwae'; got {bound!r}")
        if not 0 <= kl_warmup <= 1:
            raise ValueError(f"BoundObjective: expected kl_warmup in [0, 1]; got {kl_warmup}")
        if len(train) == 0 or len(validation) == 0:
            raise ValueError(
                f"BoundObjective: expected training and validation rows; got {len(train)} and {len(validation)}"
            )
        chosen = evenly_spaced(len(validation), MOST_VALIDATION_ROWS)
        self.validation = validation[torch.from_numpy(chosen)]
        held_out = RowTensors(self.validation, numbers=chosen if numbers is None else numbers[chosen])
        self.rows = Likelihood(RowTensors(train), held_out, batch_size, step, seed=seed)
        self.batch_size = self.rows.batch_size
        self.bound, self.samples, self.estimator = bound, samples, estimator
        self.kl_warmup, self.validation_samples, self.seed = kl_warmup, validation_samples, seed

    @classmethod
    def make(cls, problem: Any, state: Any) -> "BoundObjective":
        options, prepared = problem.options, problem.prepared
        held_out = prepared.dataset.rows[prepared.splits.validation]
        train, validation = (
            torch.as_tensor(part, dtype=torch.float32, device=state.device) for part in (prepared.recorded, held_out)
        )
        return cls(
            train,
            validation,
            options.train.batch_size,
            state.progress.step,
            bound=cls.bound,
            samples=1 if cls.bound == "elbo" else options.objective.importance_samples,
            estimator=bound_estimator(cls.bound, options.objective.gradient),
            seed=options.seed,
            numbers=prepared.dataset.in_file(prepared.splits.validation),
        )

    def draw(self, spent: float) -> tuple[Tensor, float]:
        """The next batch, and the weight of the prior and posterior terms."""
        return self.rows.draw(spent).x, min(1.0, spent / self.kl_warmup) if self.kl_warmup else 1.0

    def loss(self, flow: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Minus the mean bound of a batch."""
        x, weight = batch
        model = autoencoder_of(flow)
        bound = model.elbo if self.bound == "elbo" else model.iwae_bound
        value = -bound(x, self.samples, estimator=self.estimator, beta=weight).mean()
        return value, torch.stack([value.detach(), value.new_tensor(weight)])

    def metrics(self, means: list[float]) -> Metrics:
        """The mean loss, and the weight."""
        return {"train/loss": means[0], "train/kl_weight": means[1]}

    @torch.no_grad()
    def validate(self, flow: Any) -> Validation:
        """Minus the mean importance-weighted bound of the validation rows."""
        model = autoencoder_of(flow)
        with seeded(self.seed, self.validation.device):
            bounds = model.log_prob_bound(self.validation, self.validation_samples)
        bound = nll_from(bounds.double().cpu().numpy())
        return Validation(bound.nll, {"val/bound_se": bound.se}, note=self.rows.validation.without_density(bounds))


class EvidenceBound(BoundObjective):
    """The evidence lower bound (ELBO)."""

    bound = "elbo"
    uses = ("gradient",)


class ImportanceWeightedBound(BoundObjective):
    """The importance-weighted bound (IWAE)."""

    bound = "iwae"
    uses = ("gradient", "importance_samples")


def autoencoder_of(model: Any) -> Autoencoder:
    """Return a model that is an autoencoder.

    Raises:
        ConfigError: If it is another one.
    """
    if not isinstance(model, Autoencoder):
        raise ConfigError(f"BoundObjective: expected an Autoencoder; got a {type(model).__name__}")
    return model


def bound_estimator(bound: BoundName, gradient: str) -> Estimator:
    """The gradient estimator of a bound that ``train.gradient`` means.

    Raises:
        ConfigError: If the bound has none of that name.
    """
    if gradient == "path-wise":
        return "path-wise"
    if gradient != "path":
        raise ConfigError(f"train.gradient: expected auto, path or path-wise for an autoencoder; got {gradient}")
    return "path" if bound == "elbo" else "dreg"
