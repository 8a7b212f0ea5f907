"""The resolved options of the training loop; only the kernels and the precision may still be ``auto``."""

from dataclasses import dataclass
from typing import Literal

WARMUP_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of the training loop."""

    steps: int | None = None
    """Stop after this many steps; None for no limit on steps."""
    seconds: float | None = None
    """Stop after this much time in the loop; None for no limit on time."""
    batch_size: int = 512
    """Rows in a step."""
    learning_rate: float = 2e-3
    """Peak of the learning-rate schedule."""
    warmup: int = WARMUP_STEPS
    """Steps over which the learning rate rises to its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the network weights."""
    gradient_clip: float = 5.0
    """Largest gradient norm in a step."""
    ema_decay: float = 0.99
    """Decay of the exponential moving average of the weights, which is validated and kept; 0 turns averaging off."""
    patience: float = 1.0
    """Early-stopping patience: share of the budget without a better validation loss; 1 never stops early."""
    validate_every: int | None = None
    """Steps between validations; None spreads the validations evenly over the budget."""
    compile: Literal["auto", "on", "off"] = "auto"
    """How layers are computed; ``train.device.StepExecutor`` resolves ``auto`` from the device and the budget."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """Precision of matrix products; ``auto`` is ``tf32`` on CUDA, else ``float32``."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""
    log_every: int = 25
    """Steps between rows of metrics."""

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("TrainOptions: expected steps or seconds; got neither")
