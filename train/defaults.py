"""What ``auto`` means: sizes, regularisation and schedule from the numbers of rows and columns."""

from dataclasses import dataclass
from typing import Any, Literal

from pushforward.config.schema import Config, FlowConfig, TrainConfig

WARMUP_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """TrainOptions of the training loop, every one decided."""

    steps: int | None = None
    """Stop after this many steps; None leaves the stop to ``seconds``."""
    seconds: float | None = None
    """Stop after this much time in the loop; None leaves the stop to ``steps``."""
    batch_size: int = 512
    """Rows in one step."""
    learning_rate: float = 2e-3
    """Peak of the learning-rate schedule."""
    warmup: int = WARMUP_STEPS
    """Steps over which the learning rate rises to its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the conditioners' weights."""
    gradient_clip: float = 5.0
    """Largest norm of the gradient in one step."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that are validated and kept; 0 turns ema_decay off."""
    patience: float = 1.0
    """Share of the budget without a better validation NLL after which to stop; 1 never stops."""
    validate_every: int | None = None
    """Steps between validations; None spreads them evenly over the budget."""
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
            raise ValueError("TrainOptions: expected steps or seconds; got neither")


# Keys that only flows made of layers have: whoever sets one of them asks for such a flow.
_OF_LAYERS = ("layers", "bins", "bound", "tails", "linear", "unconditional", "elementwise")

_MOST_MEMBERS = 16
# Of the flows with a layer of splines, where steps are counted and not seconds.
_MEMBERS_IN_STEPS = 4

# One layer of splines, and a mixture as the base. On small tables an ensemble of these was ahead of twice as many
# mixtures alone; on large ones a mixture with a deep network is ahead.
_HYBRID: dict[str, Any] = {"name": "nsf-ar", "base": "made-mog"}

# What many columns, such as pixels, are learned best by, where there is time: a step takes many times as long.
_TRANSFORMER: dict[str, Any] = {"name": "made-mog", "conditioner": "transformer", "hidden": 64, "blocks": 3}
_MANY_FEATURES, _TOO_MANY_FEATURES = 20, 128
_MOST_ROWS_TO_STACK = 6_000

# Training rows below which a table is tiny or small, and from which it is large.
_SMALL, _LARGE = 600, 6_000


def resolve(config: Config, *, rows: int, features: int, is_toy: bool) -> Config:
    """Replace every ``auto`` whose meaning depends on the data.

    Args:
        config: What was asked for.
        rows: Training rows.
        features: Columns that are modelled.
        is_toy: Whether the data are drawn from a toy law, of which there is as much as wanted.

    Returns:
        A configuration without ``auto`` in ``flow`` and ``train``, but for the budget that is not used, for
        ``train.validate_every``, which follows from the budget, and for ``train.compile`` and ``train.precision``,
        which the device decides: a resumed fit may run on another one.
    """
    flow, train = config.flow, config.train
    # Capacity and dropout follow the amount of data; decay holds back what is left over.
    tier = "toy" if is_toy else "tiny" if rows < _SMALL else "small" if rows < _LARGE else "large"
    kind = _kind(config, tier)
    sizes: dict[str, dict[str, Any]] = {
        "toy": {"layers": 6, "hidden": 64, "blocks": 2, "dropout": 0.0},
        "tiny": {"layers": 2, "hidden": 32, "blocks": 1, "dropout": 0.3},
        "small": {"layers": 3, "hidden": 96, "blocks": 2, "dropout": 0.2},
        "large": {"layers": 5, "hidden": 128, "blocks": 2, "dropout": 0.0},
    }
    # A mixture's network is as wide as that of a whole stack of layers, and ema_decay makes up for what it overfits.
    of_mixtures: dict[str, dict[str, Any]] = {
        "toy": {"hidden": 128, "blocks": 2, "components": 20},
        "tiny": {"layers": 1, "hidden": 128, "blocks": 2},
        "small": {"layers": 1, "hidden": 128, "blocks": 2},
        "large": {"hidden": 256, "blocks": 4, "components": 20},
    }
    base = kind.get("base", flow.base)
    wide = kind["name"] == "made-mog" or (base == "made-mog" and tier in ("tiny", "small"))
    flow_defaults = sizes[tier] | (of_mixtures[tier] if wide else {})
    flow_defaults = (
        {
            "name": "nsf-ar",
            "bins": 8,
            "bound": 5.0,
            "tails": "linear",
            "linear": "between",
            "unconditional": "none",
            "elementwise": False,
            "conditioner": "residual",
            "components": 10,
            "stacking": "members" in kind and rows < _MOST_ROWS_TO_STACK,
            "members": 1,
            # A full covariance costs features^2 numbers; beyond a few hundred columns that is the larger risk.
            "base": "full" if features <= 256 else "diagonal",
        }
        | flow_defaults
        | kind
    )
    section = FlowConfig.model_validate(_filled(flow, flow_defaults))
    # A mixture behind one layer or none takes steps that would throw a stack of layers, or a transformer, about.
    is_shallow = wide and (section.name == "made-mog" or section.layers == 1) and section.conditioner == "residual"
    is_bold = is_shallow and tier in ("tiny", "small")
    # From a few seconds for a tiny table to two minutes for a large one.
    seconds = 10.0 if is_toy else min(120.0, 15.0 + rows * features / 8_000)
    train_defaults = {
        "batch_size": _batch_size(rows, is_toy),
        "learning_rate": 1.2e-2 if is_bold else 5e-3 if is_toy else 4e-3,
        "weight_decay": _weight_decay(train, tier, rows, features),
        "warmup": WARMUP_STEPS,
        "ema_decay": 0.99,
        "patience": 1.0 if is_toy or tier == "large" else 0.3,
        "log_every": 25,
        "seconds": "auto" if train.steps != "auto" else seconds,
    }
    return config.model_copy(
        update={
            "flow": section,
            "train": TrainConfig.model_validate(_filled(train, train_defaults)),
        }
    )


def _kind(config: Config, tier: str) -> dict[str, Any]:
    """What kind of flow ``auto`` means, and how many; what was asked for, where that was told."""
    flow = config.flow
    if flow.name != "auto":
        return {"name": flow.name} | ({"base": flow.base} if flow.base != "auto" else {})
    if tier == "toy" or not _leaves_the_kind_open(config):
        return {"name": "nsf-ar"}
    if tier == "large" or flow.base != "auto":
        return {"name": "made-mog", "members": 1 if tier == "large" else 2 * _MEMBERS_IN_STEPS}
    return _HYBRID | {"members": _MEMBERS_IN_STEPS}


def _leaves_the_kind_open(config: Config) -> bool:
    """Whether any density of rows would do: one of likelihoods, with no key set that belongs to some kinds only."""
    flow = config.flow
    return (
        config.train.objective in ("auto", "mle")
        and flow.base in ("auto", "full", "diagonal")
        and all(getattr(flow, key) == "auto" for key in _OF_LAYERS)
    )


def is_open(config: Config, *, is_toy: bool) -> bool:
    """Whether the fit itself chooses the kind and the number of flows: it has time, and nobody has chosen."""
    return config.flow.name == "auto" and not is_toy and config.train.steps == "auto" and _leaves_the_kind_open(config)


def members_for(rows: int, step_seconds: float, seconds: float) -> int:
    """How many flows there is time for, all of them trained for as many steps as a table of so many rows needs.

    Args:
        rows: Training rows.
        step_seconds: Time of a step of one flow.
        seconds: Time there is.
    """
    # On protein (36,584 rows) one flow learned more in its second 4,000 steps than a second flow added.
    steps = 400 if rows < _SMALL else 800 if rows < _LARGE else 1_500 if rows < 20_000 else 10_000
    return max(1, min(_MOST_MEMBERS, int(seconds / (steps * step_seconds))))


def candidates(config: Config, members: int, *, rows: int, features: int) -> list[Config]:
    """What ``flow=auto`` chooses among, each resolved, first the one that is taken where there is no time to compare.

    Args:
        config: What leaves the kind open.
        members: Flows there is time for, of the first kind.
        rows: Training rows.
        features: Columns that are modelled.
    """
    mixture: dict[str, Any] = {"name": "made-mog"}
    kinds: list[tuple[dict[str, Any], int]]
    if config.flow.base != "auto":
        kinds = [(mixture, members)]
    elif rows < _LARGE:
        kinds = [(_HYBRID, members), (mixture, min(_MOST_MEMBERS, 2 * members))]
    else:
        kinds = [(mixture, members), ({"name": "nsf-ar"}, max(1, members // 2))]
    sizes_are_open = all(getattr(config.flow, key) == "auto" for key in ("base", "conditioner", "hidden", "blocks"))
    if _MANY_FEATURES <= features <= _TOO_MANY_FEATURES and sizes_are_open:
        kinds.append((_TRANSFORMER, 1))
    out = []
    for kind, count in kinds:
        told = kind | {"members": count, "stacking": rows < _MOST_ROWS_TO_STACK}
        asked = {key: value for key, value in told.items() if getattr(config.flow, key) == "auto"}
        changed = config.model_copy(update={"flow": config.flow.model_copy(update=asked)})
        out.append(resolve(changed, rows=rows, features=features, is_toy=False))
    return out


def settings(train: TrainConfig) -> TrainOptions:
    """The loop's settings from a resolved configuration."""
    apart = {"objective", "gradient", "alpha", "annealing", "importance_samples", "energy_weight", "evaluate"}
    values = train.model_dump(exclude=apart)
    budget = {key: None if values[key] == "auto" else values[key] for key in ("steps", "seconds", "validate_every")}
    return TrainOptions(**(values | budget))


def _filled(section: FlowConfig | TrainConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    asked = section.model_dump()
    return {key: defaults.get(key, value) if value == "auto" else value for key, value in asked.items()}


def _weight_decay(train: TrainConfig, tier: str, rows: int, features: int) -> float:
    """The more columns for a row, the more there is to hold back.

    At equal steps, 1 was the best of 0 to 10 on most tables of 4 to 61 columns with 78 to 1,437 rows, by 0.1 to 2.4
    nats; 0.1 was on most of 4 to 14 columns with 1,300 to 37,000 rows. Beyond that, less is at stake with every row.
    """
    if train.objective in ("elbo", "iwae"):  # an autoencoder's networks were measured with these
        return {"tiny": 1e-2, "small": 1e-3}.get(tier, 0.0)
    if tier == "toy":
        return 0.0
    return float(f"{min(1.0, max(min(0.1, 4_000 / rows), 20 * features / rows)):.1g}")


def _batch_size(rows: int, is_toy: bool) -> int:
    if is_toy:
        return 512
    # About eight steps an epoch for the smallest tables. Beyond 256 rows a step gains less than the steps lost.
    size = 32
    while size < 256 and size * 16 <= rows:
        size *= 2
    return min(size, rows)
