"""Fit a model to rows in memory: a flow by maximum likelihood, an autoencoder by a bound on the likelihood."""

from typing import Any, cast

import torch
from torch import Tensor

from pushforward.flows import Flow
from pushforward.flows.vae.autoencoder import Autoencoder
from pushforward.train.objectives.bound import BoundObjective
from pushforward.train.objectives.likelihood import Likelihood, RowTensors
from pushforward.train.options import TrainOptions
from pushforward.train.trainer import State, minimize, start


def maximize_likelihood(
    state: State, train: RowTensors, validation: RowTensors, options: TrainOptions, **callbacks: Any
) -> State:
    """Fit a flow to rows by maximum likelihood.

    Args:
        state: From ``start`` or a checkpoint.
        train: Training rows.
        validation: Validation rows, already dequantized.
        options: The budget and all other options.
        **callbacks: ``log``, ``checkpoint``, ``stop`` and ``warn`` of :func:`minimize`.
    """
    likelihood = Likelihood(train, validation, options.batch_size, state.progress.step)
    return minimize(state, likelihood, options, **callbacks)


def start_autoencoder(model: Autoencoder, options: TrainOptions) -> State:
    """Make the state of a new run of an autoencoder; the loop uses nothing of a flow but its parameters."""
    return start(cast(Flow, model), options)


def maximize_bound(
    model: Autoencoder,
    train: Tensor,
    validation: Tensor,
    options: TrainOptions,
    *,
    seed: int = 0,
    callbacks: dict[str, Any] | None = None,
    **bound_options: Any,
) -> State:
    """Fit an autoencoder to rows by maximising a lower bound on the likelihood.

    Args:
        model: The autoencoder; afterwards it has the best weights and is in evaluation mode.
        train: Training rows ``(n, D)`` in the units of the decoder, on the model's device.
        validation: Validation rows, likewise.
        options: The budget and all other options.
        seed: Seed of batches, noise and dropout; the global random state is left as it was.
        callbacks: ``log``, ``checkpoint``, ``stop`` and ``warn`` of :func:`minimize`.
        **bound_options: Options of :class:`BoundObjective`.

    Returns:
        The final state; ``progress.best_loss`` is minus the best bound.

    Raises:
        ValueError: From :class:`BoundObjective`.
        DivergedError: If the bound does not stay finite.
    """
    objective = BoundObjective(train, validation, options.batch_size, seed=seed, **bound_options)
    with torch.random.fork_rng(devices=[train.device] if train.is_cuda else []):
        torch.manual_seed(seed)
        return minimize(start_autoencoder(model, options), objective, options, **(callbacks or {}))
