"""Fit a model to rows in memory: a flow by maximum likelihood, an autoencoder by a bound on the likelihood."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pushforward.flows.vae.autoencoder import Autoencoder
from pushforward.train.callbacks import Callback
from pushforward.train.objectives.bound import BoundObjective
from pushforward.train.objectives.likelihood import Likelihood, RowTensors
from pushforward.train.options import TrainOptions
from pushforward.train.state import State, start
from pushforward.train.trainer import Trainer


def maximize_likelihood(
    state: State,
    train: RowTensors,
    validation: RowTensors,
    options: TrainOptions,
    *,
    callbacks: Iterable[Callback] = (),
    seed: int | None = None,
) -> State:
    """Fit a flow to rows by maximum likelihood.

    Args:
        state: From ``start`` or a checkpoint.
        train: Training rows.
        validation: Validation rows, already dequantized.
        options: The budget and all other options.
        callbacks: Called around the steps.
        seed: Seed of the order of the rows; torch's initial seed by default.
    """
    likelihood = Likelihood(train, validation, options.batch_size, state.progress.step, seed=seed)
    return Trainer(options, callbacks=callbacks).run(state, likelihood)


def maximize_bound(
    model: Autoencoder,
    train: Tensor,
    validation: Tensor,
    options: TrainOptions,
    *,
    seed: int = 0,
    callbacks: Iterable[Callback] = (),
    **bound_options: Any,
) -> State:
    """Fit an autoencoder to rows by maximising a lower bound on the likelihood.

    Args:
        model: The autoencoder; afterwards it has the best weights and is in evaluation mode.
        train: Training rows ``(n, D)`` in the units of the decoder, on the model's device.
        validation: Validation rows, likewise.
        options: The budget and all other options.
        seed: Seed of batches, noise and dropout; the global random state is left as it was.
        callbacks: Called around the steps.
        **bound_options: Options of :class:`BoundObjective`.

    Returns:
        The final state; ``progress.best_loss`` is minus the best bound.

    Raises:
        ValueError: From :class:`BoundObjective`.
        DivergedError: If the bound does not stay finite.
    """
    objective = BoundObjective(train, validation, options.batch_size, seed=seed, **bound_options)
    return Trainer(options, callbacks=callbacks).run(start(model, options, seed=seed), objective)
