"""Fit a model to rows in memory: by maximum likelihood, or by a bound on it."""

from typing import Any, cast

import torch
from torch import Tensor

from pushforward.flows import Flow
from pushforward.flows.vae.autoencoder import Autoencoder
from pushforward.train.defaults import TrainOptions
from pushforward.train.objectives.bound import BoundObjective
from pushforward.train.objectives.likelihood import Likelihood, Rows
from pushforward.train.trainer import State, minimize, start


def maximize_likelihood(state: State, train: Rows, validation: Rows, settings: TrainOptions, **listeners: Any) -> State:
    """Fit a flow to rows by maximum likelihood: :func:`minimize` for the objective of that name.

    Args:
        state: From ``start`` or a checkpoint.
        train: Training rows.
        validation: Validation rows, noise already added.
        settings: The budget and everything else.
        **listeners: As :func:`minimize` takes them.
    """
    likelihood = Likelihood(train, validation, settings.batch_size, state.progress.step)
    return minimize(state, likelihood, settings, **listeners)


def begin(model: Autoencoder, settings: TrainOptions) -> State:
    """The state of a fit that has not begun; the loop knows a model by its parameters alone."""
    return start(cast(Flow, model), settings)


def maximize_bound(
    model: Autoencoder,
    train: Tensor,
    validation: Tensor,
    settings: TrainOptions,
    *,
    seed: int = 0,
    listeners: dict[str, Any] | None = None,
    **options: Any,
) -> State:
    """Fit an autoencoder by a bound on the likelihood: ``train.loop.minimize`` for that objective.

    Args:
        model: The autoencoder; it ends with the best weights, in evaluation mode.
        train: Training rows ``(n, D)`` as the decoder takes them, on the model's device.
        validation: Validation rows, likewise.
        settings: The budget and everything else.
        seed: Of batches, noise and dropout; random numbers outside the fit are left as they were.
        listeners: ``log``, ``stop`` and ``warn`` of ``minimize``.
        **options: Of :class:`BoundObjective`.

    Returns:
        Where training ended; ``progress.best_loss`` is minus the best bound.

    Raises:
        ValueError: As :class:`BoundObjective`.
        DivergedError: If the bound does not stay finite.
    """
    objective = BoundObjective(train, validation, settings.batch_size, seed=seed, **options)
    with torch.random.fork_rng(devices=[train.device] if train.is_cuda else []):
        torch.manual_seed(seed)
        return minimize(begin(model, settings), objective, settings, **(listeners or {}))
