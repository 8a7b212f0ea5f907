"""What the training loop minimises: the contract of an objective."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Metrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        loss: What decides which weights are best.
        metrics: What is logged besides.
        noise: By how much the loss may miss: later weights are preferred to earlier ones that are better by no more.
            Zero where there is a finite table to learn by heart, and later is not better.
    """

    loss: float
    metrics: Metrics = field(default_factory=dict)
    noise: float = 0.0


class Objective(Protocol):
    """A loss that is estimated anew in every step, and validated now and then.

    Attributes:
        loss_key: What the loss is logged as: ``train/<key>``, ``val/<key>``, ``best/val_<key>``.
        loss_name: What messages call it.
        points: Rows in one step.
    """

    loss_key: str
    loss_name: str
    points: int

    def draw(self, spent: float) -> Any:
        """Everything of the next step that the flow does not decide: its batch, and what depends on the time.

        Args:
            spent: Share of the budget that is spent.
        """

    def loss(self, flow: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """What is differentiated ``()``, and the numbers to be averaged until they are logged ``(k,)``.

        Nothing here waits for the device. A number that is not finite sends the fit back.
        """

    def metrics(self, means: list[float]) -> Metrics:
        """What is logged of the means of these numbers, ``train/<key>`` among them."""

    def at(self, step: int) -> Metrics:
        """What is logged of a step besides."""

    def validate(self, flow: Any) -> Validation:
        """The loss of a flow in evaluation mode, the same for the same weights, lower being better."""
