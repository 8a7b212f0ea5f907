"""The contract of an objective: what the training loop minimises."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Metrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """The result of a validation.

    Attributes:
        loss: The weights with the lowest loss are kept.
        metrics: Further numbers to log.
        tolerance: Later weights replace the best ones unless their loss is higher by more than this. The standard error
            of the loss if every step draws new samples; zero for a finite table, which later weights may overfit.
    """

    loss: float
    metrics: Metrics = field(default_factory=dict)
    tolerance: float = 0.0


class Objective(Protocol):
    """A loss that every step estimates on a new batch, and that is validated from time to time.

    Attributes:
        loss_key: Name of the loss in the metrics: ``train/<key>``, ``val/<key>``, ``best/val_<key>``.
        loss_name: Name of the loss in messages.
        batch_size: Rows or samples in a step.
    """

    loss_key: str
    loss_name: str
    batch_size: int

    def draw(self, spent: float) -> Any:
        """Draw the batch of the next step, with everything else that does not depend on the flow.

        Args:
            spent: Share of the budget that is spent.
        """

    def loss(self, flow: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss ``()`` to differentiate, and numbers ``(k,)`` that are averaged until they are logged.

        Must not wait for the device. If a number is not finite, training rolls back.
        """

    def metrics(self, means: list[float]) -> Metrics:
        """Metrics from the means of these numbers, ``train/<key>`` among them."""

    def step_metrics(self, step: int) -> Metrics:
        """Further metrics of a step."""

    def validate(self, flow: Any) -> Validation:
        """The loss of a flow in evaluation mode, deterministic given the weights; lower is better."""
