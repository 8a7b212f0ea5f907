"""The contract of an objective: what the training loop minimises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

Metrics = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """The result of a validation.

    Attributes:
        loss: The weights with the lowest finite loss are kept.
        metrics: Further numbers to log.
        tolerance: Later weights replace the best ones unless their loss is higher by more than this. The standard error
            of the loss if every step draws new samples; zero for a finite table, which later weights may overfit.
        note: Which rows make the loss infinite, in words for an error message; empty if none do.
    """

    loss: float
    metrics: Metrics = field(default_factory=dict)
    tolerance: float = 0.0
    note: str = ""


class Objective(ABC):
    """A loss that every step estimates on a new batch, and that is validated from time to time.

    Attributes:
        loss_key: Name of the loss in the metrics: ``train/<key>``, ``val/<key>``, ``best/val_<key>``.
        loss_name: Name of the loss in messages.
        batch_size: Rows or samples in a step.
        uses: Keys of ``train`` that belong to this objective and not to every fit, such as ``alpha``.
        takes_weights: Whether weights of rows count.
        takes_mixtures: Whether several flows can be fitted as a mixture (``flow.members``).
        least_batch: Fewest rows in a step.
        is_likelihood: Whether it maximises the likelihood, or a bound on it: the likelihood of validation rows then
            decides whether the fit ends with the flow, with a Gaussian, or with an average of both.
        only_own_flows: Whether it fits only architectures whose ``objective`` is its name.
    """

    loss_key: str = "loss"
    loss_name: str = "loss"
    batch_size: int
    uses: ClassVar[tuple[str, ...]] = ()
    takes_weights: ClassVar[bool] = False
    takes_mixtures: ClassVar[bool] = False
    least_batch: ClassVar[int] = 1
    is_likelihood: ClassVar[bool] = False
    only_own_flows: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def make(cls, problem: Any, state: Any) -> "Objective":
        """Make the objective of a fit.

        Args:
            problem: The problem (``train.problems``), with its ``options`` and its data.
            state: The state that training goes on from (``train.state``).
        """

    @abstractmethod
    def draw(self, spent: float) -> Any:
        """Draw the batch of the next step, with everything else that does not depend on the flow.

        Args:
            spent: Share of the budget that is spent.
        """

    @abstractmethod
    def loss(self, flow: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss ``()`` to differentiate, and numbers ``(k,)`` that are averaged until they are logged.

        Must not wait for the device. If a number is not finite, training rolls back.
        """

    @abstractmethod
    def metrics(self, means: list[float]) -> Metrics:
        """Metrics from the means of these numbers, ``train/<key>`` among them."""

    @abstractmethod
    def validate(self, flow: Any) -> Validation:
        """The loss of a flow in evaluation mode, deterministic given the weights; lower is better."""

    def differentiate(self, flow: Any, optimizer: Optimizer, batch: Any) -> Tensor:
        """Compute the gradients of the loss of a batch, and return the numbers to log."""
        optimizer.zero_grad(set_to_none=True)
        loss, numbers = self.loss(flow, batch)
        loss.backward()
        return numbers

    def step_metrics(self, step: int) -> Metrics:
        """Further metrics of a step."""
        return {}

    def in_data_units(self, metrics: Mapping[str, float]) -> Metrics:
        """Metrics in the units of the data, as they are logged; the loop itself compares standardised ones."""
        return dict(metrics)
