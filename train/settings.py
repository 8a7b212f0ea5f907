"""What ``auto`` means: sizes, regularisation and schedule from the numbers of rows and columns."""

from dataclasses import dataclass
from typing import Any, Literal

from pushforward.train.config import Config, FlowConfig, TrainConfig
from pushforward.train.overrides import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the training loop, every one decided."""

    steps: int | None = None
    """Stop after this many steps; None leaves the stop to ``seconds``."""
    seconds: float | None = None
    """Stop after this much time in the loop; None leaves the stop to ``steps``."""
    batch_size: int = 512
    """Rows in one step."""
    learning_rate: float = 2e-3
    """Peak of the learning-rate schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the conditioners' weights."""
    gradient_clip: float = 5.0
    """Largest norm of the gradient in one step."""
    averaging: float = 0.99
    """Decay of the averaged weights that are validated and kept; 0 turns averaging off."""
    patience: float = 1.0
    """Share of the budget without a better validation NLL after which to stop; 1 never stops."""
    compile: Literal["auto", "on", "off"] = "auto"
    """How layers are computed; ``auto`` is decided by the device and the budget, see ``train.device.Steps``."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """Precision of matrix products; ``auto`` is ``tf32`` on CUDA, else ``float32``."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""
    log_every: int = 25
    """Steps between rows of metrics."""

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ValueError("Settings: expected steps or seconds; got neither")


def resolve(config: Config, *, rows: int, features: int, is_toy: bool) -> Config:
    """Replace every ``auto`` whose meaning depends on the data.

    Args:
        config: What was asked for.
        rows: Training rows.
        features: Columns that are modelled.
        is_toy: Whether the data are drawn from a toy law, of which there is as much as wanted.

    Returns:
        A configuration without ``auto`` in ``flow`` and ``train``, but for the budget that is not used, and for
        ``train.compile`` and ``train.precision``, which the device decides: a resumed fit may run on another one.
    """
    flow, train = config.flow, config.train
    name = "nsf-ar" if flow.name == "auto" else flow.name
    # Capacity follows the amount of data; dropout and decay hold back what is left over.
    tier = "toy" if is_toy else "tiny" if rows < 600 else "small" if rows < 6_000 else "large"
    sizes: dict[str, dict[str, Any]] = {
        "toy": {"layers": 6, "hidden": 64, "blocks": 2, "bins": 8, "dropout": 0.0},
        "tiny": {"layers": 2, "hidden": 32, "blocks": 1, "bins": 8, "dropout": 0.3},
        "small": {"layers": 3, "hidden": 96, "blocks": 2, "bins": 8, "dropout": 0.2},
        "large": {"layers": 5, "hidden": 128, "blocks": 2, "bins": 8, "dropout": 0.0},
    }
    flow_defaults = sizes[tier] | {
        "bound": 5.0,
        # A full covariance costs features^2 numbers; beyond a few hundred columns that is the larger risk.
        "base": "full" if features <= 256 else "diagonal",
    }
    # From a few seconds for a tiny table to two minutes for a large one.
    seconds = 10.0 if is_toy else min(120.0, 15.0 + rows * features / 8_000)
    train_defaults = {
        "batch_size": _batch_size(rows, is_toy),
        "learning_rate": {"toy": 5e-3, "tiny": 3e-3, "small": 4e-3, "large": 4e-3}[tier],
        "weight_decay": {"toy": 0.0, "tiny": 1e-2, "small": 1e-3, "large": 0.0}[tier],
        "averaging": 0.99,
        "patience": 1.0 if is_toy or tier == "large" else 0.3,
        "log_every": 25,
        "seconds": "auto" if train.steps != "auto" else seconds,
    }
    return config.model_copy(
        update={
            "flow": FlowConfig.model_validate(_filled(flow, flow_defaults | {"name": name})),
            "train": TrainConfig.model_validate(_filled(train, train_defaults)),
        }
    )


def check_base_has_gradients(config: Config, features: int) -> None:
    """Complain of a base whose samples carry no gradient, where the objective is made of samples.

    Raises:
        ConfigError: If it is one.
    """
    if config.flow.base == "resampled" and features > 2:
        raise ConfigError(
            f"flow.base: samples of a resampled base carry no gradient beyond 2 columns, and "
            f"train.objective={config.train.objective} needs it; take another base, such as mixture"
        )


def settings(train: TrainConfig) -> Settings:
    """The loop's settings from a resolved configuration."""
    apart = {"objective", "gradient", "alpha", "annealing", "importance_samples", "energy_weight", "evaluate"}
    values = train.model_dump(exclude=apart)
    budget = {key: None if values[key] == "auto" else values[key] for key in ("steps", "seconds")}
    return Settings(**(values | budget))


def _filled(section: FlowConfig | TrainConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    asked = section.model_dump()
    return {key: defaults.get(key, value) if value == "auto" else value for key, value in asked.items()}


def _batch_size(rows: int, is_toy: bool) -> int:
    if is_toy:
        return 512
    # About eight steps an epoch for the smallest tables. Beyond 256 rows a step gains less than the steps lost.
    size = 32
    while size < 256 and size * 16 <= rows:
        size *= 2
    return min(size, rows)
