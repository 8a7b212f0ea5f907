"""What ``auto`` means: sizes, regularisation and schedule from the numbers of rows and columns."""

from typing import Any

from pushforward.config.schema import Config, FlowConfig, TrainConfig
from pushforward.train.options import WARMUP_STEPS, TrainOptions

# Keys that only flows made of layers have: setting one of them asks for such a flow.
_LAYER_KEYS = ("layers", "bins", "bound", "tails", "linear", "unconditional", "elementwise")

_MOST_MEMBERS = 16
# Members of a mixture of flows with spline layers where the budget is in steps, which does not limit their number.
_MEMBERS_IN_STEPS = 4

# One spline layer, and a mixture as the base. On small tables several of these, averaged, were better than twice
# as many mixtures alone; on large tables a mixture with a deep network is better.
_HYBRID: dict[str, Any] = {"name": "nsf-ar", "base": "made-mog"}

# The best model of many columns, such as pixels, if there is time: a step takes many times as long.
_TRANSFORMER: dict[str, Any] = {"name": "made-mog", "conditioner": "transformer", "hidden": 64, "blocks": 3}
_MANY_FEATURES, _TOO_MANY_FEATURES = 20, 128
_MOST_ROWS_TO_STACK = 6_000

# Training rows below which a table is tiny or small, and from which it is large.
_SMALL, _LARGE = 600, 6_000


def resolve(config: Config, *, rows: int, features: int, is_toy: bool) -> Config:
    """Replace every ``auto`` whose meaning depends on the data.

    Args:
        config: The configuration as the user gave it.
        rows: Training rows.
        features: Columns that are modelled.
        is_toy: Whether the data are drawn from a known distribution, so that their number is unlimited.

    Returns:
        A configuration without ``auto`` in ``flow`` and ``train``, except for the unused budget, for
        ``train.validate_every``, which follows from the budget, and for ``train.compile`` and ``train.precision``,
        which depend on the device: a resumed fit may run on another one.
    """
    flow, train = config.flow, config.train
    # Capacity and dropout follow the amount of data; weight decay regularises the rest.
    tier = "toy" if is_toy else "tiny" if rows < _SMALL else "small" if rows < _LARGE else "large"
    kind = _kind(config, tier)
    sizes: dict[str, dict[str, Any]] = {
        "toy": {"layers": 6, "hidden": 64, "blocks": 2, "dropout": 0.0},
        "tiny": {"layers": 2, "hidden": 32, "blocks": 1, "dropout": 0.3},
        "small": {"layers": 3, "hidden": 96, "blocks": 2, "dropout": 0.2},
        "large": {"layers": 5, "hidden": 128, "blocks": 2, "dropout": 0.0},
    }
    # A mixture's network is as wide as those of a whole stack of layers; weight averaging compensates its overfitting.
    mixture_sizes: dict[str, dict[str, Any]] = {
        "toy": {"hidden": 128, "blocks": 2, "components": 20},
        "tiny": {"layers": 1, "hidden": 128, "blocks": 2},
        "small": {"layers": 1, "hidden": 128, "blocks": 2},
        "large": {"hidden": 256, "blocks": 4, "components": 20},
    }
    base = kind.get("base", flow.base)
    wide = kind["name"] == "made-mog" or (base == "made-mog" and tier in ("tiny", "small"))
    flow_defaults = sizes[tier] | (mixture_sizes[tier] if wide else {})
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
            # A full covariance has features^2 parameters; beyond a few hundred columns that is the larger risk.
            "base": "full" if features <= 256 else "diagonal",
        }
        | flow_defaults
        | kind
    )
    section = FlowConfig.model_validate(_filled(flow, flow_defaults))
    # A mixture behind at most one layer tolerates a learning rate at which deeper flows and transformers diverge.
    is_shallow = wide and (section.name == "made-mog" or section.layers == 1) and section.conditioner == "residual"
    has_large_rate = is_shallow and tier in ("tiny", "small")
    # From a few seconds for a tiny table to two minutes for a large one.
    seconds = 10.0 if is_toy else min(120.0, 15.0 + rows * features / 8_000)
    train_defaults = {
        "batch_size": _batch_size(rows, is_toy),
        "learning_rate": 1.2e-2 if has_large_rate else 5e-3 if is_toy else 4e-3,
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
    """Return the kind of flow and the number of members that ``auto`` means; given keys are kept."""
    flow = config.flow
    if flow.name != "auto":
        return {"name": flow.name} | ({"base": flow.base} if flow.base != "auto" else {})
    if tier == "toy" or not _leaves_kind_open(config):
        return {"name": "nsf-ar"}
    if tier == "large" or flow.base != "auto":
        return {"name": "made-mog", "members": 1 if tier == "large" else 2 * _MEMBERS_IN_STEPS}
    return _HYBRID | {"members": _MEMBERS_IN_STEPS}


def _leaves_kind_open(config: Config) -> bool:
    """Whether any kind of flow may be selected: no key belongs to some kinds only, and the likelihood is maximised."""
    flow = config.flow
    return (
        config.train.objective in ("auto", "mle")
        and flow.base in ("auto", "full", "diagonal")
        and all(getattr(flow, key) == "auto" for key in _LAYER_KEYS)
    )


def is_open(config: Config, *, is_toy: bool) -> bool:
    """Whether the fit itself selects the model: the budget is in seconds, and the user has not chosen a flow."""
    return config.flow.name == "auto" and not is_toy and config.train.steps == "auto" and _leaves_kind_open(config)


def members_for(rows: int, step_seconds: float, seconds: float) -> int:
    """How many members of a mixture can be trained in the budget, each with the steps that so many rows need.

    Args:
        rows: Training rows.
        step_seconds: Time of a step of one flow.
        seconds: The budget.
    """
    # On protein (36,584 rows) one flow gained more from another 4,000 steps than from a second member.
    steps = 400 if rows < _SMALL else 800 if rows < _LARGE else 1_500 if rows < 20_000 else 10_000
    return max(1, min(_MOST_MEMBERS, int(seconds / (steps * step_seconds))))


def candidates(config: Config, members: int, *, rows: int, features: int) -> list[Config]:
    """Resolved candidates of ``flow=auto``; the first one is used where there is no time to compare.

    Args:
        config: A configuration that leaves the kind of flow open.
        members: Members of the first candidate.
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
        choices = kind | {"members": count, "stacking": rows < _MOST_ROWS_TO_STACK}
        open_choices = {key: value for key, value in choices.items() if getattr(config.flow, key) == "auto"}
        changed = config.model_copy(update={"flow": config.flow.model_copy(update=open_choices)})
        out.append(resolve(changed, rows=rows, features=features, is_toy=False))
    return out


def train_options(train: TrainConfig) -> TrainOptions:
    """Options of the training loop from a resolved configuration."""
    not_of_loop = {"objective", "gradient", "alpha", "annealing", "importance_samples", "energy_weight", "evaluate"}
    values = train.model_dump(exclude=not_of_loop)
    budget = {key: None if values[key] == "auto" else values[key] for key in ("steps", "seconds", "validate_every")}
    return TrainOptions(**(values | budget))


def _filled(section: FlowConfig | TrainConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    values = section.model_dump()
    return {key: defaults.get(key, value) if value == "auto" else value for key, value in values.items()}


def _weight_decay(train: TrainConfig, tier: str, rows: int, features: int) -> float:
    """Weight decay that grows with the number of columns per row.

    At equal steps, 1 was the best of 0 to 10 on most tables of 4 to 61 columns with 78 to 1,437 rows, by 0.1 to 2.4
    nats; 0.1 was the best on most of 4 to 14 columns with 1,300 to 37,000 rows. With more rows it matters less.
    """
    if train.objective in ("elbo", "iwae"):  # measured for the networks of autoencoders
        return {"tiny": 1e-2, "small": 1e-3}.get(tier, 0.0)
    if tier == "toy":
        return 0.0
    return float(f"{min(1.0, max(min(0.1, 4_000 / rows), 20 * features / rows)):.1g}")


def _batch_size(rows: int, is_toy: bool) -> int:
    if is_toy:
        return 512
    # About eight steps an epoch on the smallest tables. Beyond 256 rows, fewer steps cost more than larger ones gain.
    size = 32
    while size < 256 and size * 16 <= rows:
        size *= 2
    return min(size, rows)
