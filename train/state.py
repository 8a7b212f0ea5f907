"""The state of a training run: weights, their average, the best ones, the optimiser, counters."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.random_state import RandomState
from pushforward.train.optimizer import ClippedAdamW
from pushforward.train.options import TrainOptions


@dataclass
class TrainingProgress:
    """Counters of a training run; a checkpoint holds them besides weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    best_seconds: float = 0.0
    start_loss: float = math.inf
    rollbacks: int = 0
    stop_reason: str = ""
    validated_step: int = -1


@dataclass
class State:
    """The state of a training run between two steps.

    Attributes:
        flow: The model with its current weights; after training, with the best ones.
        average: Exponential moving average of the parameters.
        optimizer: The optimiser with its moments.
        best: State dict of the weights with the best validation loss.
        random: The random state of the steps.
        progress: Counters.
    """

    flow: Any
    average: list[Tensor]
    optimizer: ClippedAdamW
    best: dict[str, Tensor]
    random: RandomState
    progress: TrainingProgress = field(default_factory=TrainingProgress)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.average[0].device

    @property
    def parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.flow.parameters())

    @contextlib.contextmanager
    def weights(self, *, averaged: bool) -> Iterator[None]:
        """Context in which the model has its own or the averaged weights; tensors change places, nothing is copied."""
        if not averaged:
            yield
            return
        parameters = list(self.flow.parameters())
        own = [p.data for p in parameters]
        for p, value in zip(parameters, self.average, strict=True):
            p.data = value
        try:
            yield
        finally:
            for p, value in zip(parameters, own, strict=True):
                p.data = value

    def roll_back(self) -> None:
        """Return to the best weights, and reset the optimiser."""
        self.flow.load_state_dict(self.best)
        with torch.no_grad():
            for average, parameter in zip(self.average, self.flow.parameters(), strict=True):
                average.copy_(parameter)
        self.optimizer.state.clear()


def start(flow: nn.Module, options: TrainOptions, *, seed: int = 0, random: RandomState | None = None) -> State:
    """Make the state of a new run; layers that initialise themselves from data must have done so already.

    Args:
        flow: The model, on its device.
        options: The learning rate and the weight decay are used.
        seed: Seed of the steps: noise and dropout.
        random: A random state that goes on instead.
    """
    decayed = [p for name, p in flow.named_parameters() if _is_decayed(name, p)]
    chosen = {id(p) for p in decayed}
    others = [p for p in flow.parameters() if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = ClippedAdamW([g for g in groups if g["params"]], options.learning_rate)
    average = [p.detach().clone() for p in flow.parameters()]
    random = RandomState(seed, average[0].device) if random is None else random
    return State(flow, average, optimizer, copy.deepcopy(flow.state_dict()), random)


def _is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether it is a weight of a network, and not a parameter of a base distribution itself."""
    parts = name.split(".")
    own = parts[-1] in ("raw", "bias", "position", "frequency")
    return parameter.dim() > 1 and not own and ("base" not in parts or "conditioner" in parts)
