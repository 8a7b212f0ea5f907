"""Train a module: :class:`Trainer`, around the loop of ``loop.py``."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pushforward.common.errors import ConfigError
from pushforward.common.text import listed
from pushforward.train.callbacks import Callback, Callbacks
from pushforward.train.loop import Loop
from pushforward.train.objectives.base import Objective
from pushforward.train.objectives.likelihood import Likelihood
from pushforward.train.options import TrainOptions
from pushforward.train.state import State
from pushforward.train.tensors import Rows, row_tensors, start_on_rows


class Trainer:
    """Trains a model until the budget is spent, validation stops improving, or a callback asks to stop.

    Every step estimates the objective and takes one AdamW step; the learning rate warms up and then follows a cosine to
    zero over the budget. The averaged weights are validated and kept. No step waits for the device: numbers are read
    when they are logged. Steps use the kernels and the precision of ``train.device.StepExecutor``; validation is exact.
    If the loss or its gradient is not finite, training rolls back to the best weights with half the learning rate. A
    trainer keeps nothing of a fit.

    Args:
        options: The budget and all other options; by default made from ``keys``.
        callbacks: Called around the steps, in this order.
        **keys: The fields of ``TrainOptions``, such as ``seconds=60`` or ``learning_rate=1e-3``.

    Raises:
        ConfigError: If a key is unknown or a value out of range (a ``ValueError``).

    Example:
        >>> import torch
        >>> from pushforward.flows import build
        >>> x = torch.randn(300, 2)
        >>> flow = Trainer(steps=20).fit(build("maf", 2, hidden=8), x[:200], x[200:])
        >>> flow.log_prob(x).shape
        torch.Size([300])
    """

    def __init__(self, options: TrainOptions | None = None, *, callbacks: Iterable[Callback] = (), **keys: Any) -> None:
        if options is not None and keys:
            raise ConfigError(f"Trainer: expected options or keys; got both, {listed(list(keys))} beside options")
        self.options = TrainOptions.of(keys) if options is None else options
        self.callbacks = Callbacks(callbacks)

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def fit(
        self,
        flow: nn.Module,
        x: Any,
        x_validation: Any = None,
        *,
        given: Any = None,
        given_validation: Any = None,
        weight: Any = None,
        weight_validation: Any = None,
        seed: int = 0,
    ) -> nn.Module:
        """Fit a flow, or any module with ``log_prob(x, context)``, to rows by maximum likelihood.

        The rows are taken as they are: standardised ones train best. The random state of torch does not change.

        Args:
            flow: The module, on its device; it is trained in place and ends in evaluation mode.
            x: Training rows ``(n, D)``: an array, a tensor, a list, or a frame of numbers.
            x_validation: Validation rows ``(m, D)``; by default a random tenth of the training rows.
            given: Context rows ``(n, C)``.
            given_validation: Context of the validation rows ``(m, C)``.
            weight: Weights of the training rows ``(n,)``.
            weight_validation: Weights of the validation rows ``(m,)``.
            seed: Seed of batches, noise and dropout.

        Returns:
            The same module, with its best weights.

        Raises:
            ConfigError: If this is not a module with trainable parameters (a ``ValueError``).
            DataError: If rows, context or weights cannot be used (a ``ValueError``).
            DivergedError: If the loss does not stay finite, or is not finite in any validation.
        """
        parts = Rows(x, given, weight), Rows(x_validation, given_validation, weight_validation)
        train, validation = row_tensors(flow, *parts, seed=seed)
        state = start_on_rows(flow, train, self.options, seed)
        self.run(state, Likelihood(train, validation, self.options.batch_size, seed=seed))
        return flow

    def run(self, state: State, objective: Objective) -> State:
        """Minimise an objective, from a new state or one of a checkpoint.

        Returns:
            The state; ``state.flow`` has the best weights, ``state.progress.stop_reason`` says why training ended.

        Raises:
            DivergedError: If the loss does not stay finite, or is not finite in any validation.
        """
        return Loop(self.options, self.callbacks, state, objective).run()
