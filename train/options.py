"""The resolved options of a fit: plain dataclasses, in which nothing is ``auto`` any more.

None means that there is none (no limit, no bounds), or a choice that depends on the device of each fit.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from pushforward.common.errors import ConfigError
from pushforward.common.text import unknown_name

WARMUP_STEPS = 100

VALIDATIONS = 40
"""Validations over the budget, unless their interval is given."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which rows are read, how they are split, and how they are prepared; as the keys ``data.*``."""

    source: str
    rows: int | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    response: tuple[str, ...] = ()
    weight: str | None = None
    missing: Literal["refuse", "drop"] = "refuse"
    missing_values: tuple[float, ...] = ()
    protocol: str | None = None
    fold: int = 0
    dequantize: bool = True
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.1


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """The flow; as the keys ``flow.*``."""

    name: str
    layers: int = 5
    hidden: int = 128
    blocks: int = 2
    bins: int = 8
    bound: float = 5.0
    tails: Literal["linear", "learned"] = "linear"
    linear: Literal["between", "around"] = "between"
    unconditional: Literal["none", "spline"] = "none"
    elementwise: bool = False
    dropout: float = 0.0
    conditioner: str = "residual"
    univariate: str = ""
    components: int = 10
    base: str = "full"
    members: int = 1
    """Flows averaged in probability."""
    stacking: bool = False
    """Whether the flow is averaged with a Gaussian and a kernel density."""


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The target that is fitted instead of rows; as the keys ``target.*``."""

    features: int | None = None
    bounds: tuple[float, float] | None = None
    spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class VaeOptions:
    """The variational autoencoder; as the keys ``vae.*``."""

    latent: int
    decoder: str
    prior: str
    posterior: str


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """The objective and its gradient estimator; as the keys of ``train`` with these names, ``name`` for its own."""

    name: str = "mle"
    gradient: str = "path"
    alpha: float = 2.0
    annealing: float = 0.4
    importance_samples: int = 16
    energy_weight: float = 1.0


_ABOVE_0 = (Real, lambda value: 0 < value < math.inf, "a number above 0")
_COUNT = (Integral, lambda value: value > 0, "a whole number above 0")
_RANGES: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "steps": _COUNT,
    "seconds": _ABOVE_0,
    "batch_size": _COUNT,
    "learning_rate": _ABOVE_0,
    "warmup": (Integral, lambda value: value >= 0, "a whole number, 0 or above"),
    "weight_decay": (Real, lambda value: 0 <= value < math.inf, "a number, 0 or above"),
    "gradient_clip": _ABOVE_0,
    "ema_decay": (Real, lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "patience": (Real, lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "validate_every": _COUNT,
    "checkpoint_seconds": _ABOVE_0,
    "log_every": _COUNT,
}
_LIMITS = ("steps", "seconds", "validate_every")  # None stands for no limit

Compile = Literal["on", "off"]
Precision = Literal["float32", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of the training loop; as the keys ``train.*``.

    Raises:
        ConfigError: If a value is of another type or out of range, or there is no budget.
    """

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
    compile: Compile | None = None
    """How layers are computed; None is decided by ``train.device.StepExecutor`` from the device and the budget."""
    precision: Precision | None = None
    """Precision of matrix products; None is ``tf32`` on CUDA, else ``float32``."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""
    log_every: int = 25
    """Steps between rows of metrics."""

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise ConfigError("train.steps: expected steps or seconds; got neither")
        for key, (kind, is_right, expected) in _RANGES.items():
            value = getattr(self, key)
            if value is None and key in _LIMITS:
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not is_right(value):
                raise ConfigError(f"train.{key}: expected {expected}; got {value!r}")
        for key, known in (("compile", get_args(Compile)), ("precision", get_args(Precision))):
            if getattr(self, key) not in (None, *known):
                raise ConfigError(f"train.{key}: expected {', '.join(known)} or None; got {getattr(self, key)!r}")

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "TrainOptions":
        """The options of keys by name.

        Raises:
            ConfigError: If a key is unknown, or as for the class itself.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in keys:
            if key not in known:
                raise ConfigError(unknown_name("option of training", key, known))
        return cls(**keys)

    def share(self, steps: int, seconds: float) -> float:
        """The larger share of the budget that so many steps and seconds are, at most 1."""
        by_steps = steps / self.steps if self.steps else 0.0
        by_time = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def budget(self) -> str:
        """The budget in words, as in ``2,000 steps or 30 s``."""
        steps = [] if self.steps is None else [f"{self.steps:,} steps"]
        return " or ".join(steps + ([] if self.seconds is None else [f"{self.seconds:g} s"]))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that decides a fit; a kind of fit that does not use a group has its defaults there."""

    seed: int
    device: str
    data: DataOptions
    flow: FlowOptions
    train: TrainOptions
    objective: ObjectiveOptions = ObjectiveOptions()
    target: TargetOptions = TargetOptions()
    vae: VaeOptions | None = None

    def replace(self, **groups: Any) -> "Options":
        """Return options with other values of whole groups, or of the fields of a group that are given as a dict."""
        changed = {
            name: dataclasses.replace(getattr(self, name), **value) if isinstance(value, dict) else value
            for name, value in groups.items()
        }
        return dataclasses.replace(self, **changed)
