"""What ``auto`` means: sizes, regularisation and schedule from the numbers of rows and columns."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pushforward.flows.registries import FLOWS
from pushforward.train.options import (
    DataOptions,
    FlowOptions,
    ObjectiveOptions,
    Options,
    TargetOptions,
    TrainOptions,
)

Asked = Mapping[str, Any]
"""The keys that were asked for, by group (``data``, ``flow``, ``train``, ...), all of them; a value may be ``auto``."""

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

SMALL, LARGE = 600, 6_000
"""Training rows below which a table is tiny, and from which it is large."""


def resolve(asked: Asked, *, rows: int, features: int, is_toy: bool, objective: str = "mle") -> Options:
    """Replace every ``auto`` whose meaning depends on the data.

    Args:
        asked: The keys as they were asked for.
        rows: Training rows.
        features: Columns that are modelled.
        is_toy: Whether the data are drawn from a known distribution, so that their number is unlimited.
        objective: What ``train.objective=auto`` means.

    Returns:
        The options of a fit of a flow.
    """
    flow, train = asked["flow"], asked["train"]
    # Capacity and dropout follow the amount of data; weight decay regularises the rest.
    tier = "toy" if is_toy else "tiny" if rows < SMALL else "small" if rows < LARGE else "large"
    kind = _kind(asked, tier)
    own = dict(FLOWS[kind["name"]].defaults)
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
    base = kind.get("base", flow["base"])
    wide = kind["name"] == "made-mog" or (base == "made-mog" and tier in ("tiny", "small"))
    flow_defaults = (
        {
            "stacking": "members" in kind and rows < _MOST_ROWS_TO_STACK,
            # A full covariance has features^2 parameters; beyond a few hundred columns that is the larger risk.
            "base": "full" if features <= 256 else "diagonal",
        }
        | sizes[tier]
        | (mixture_sizes[tier] if wide else {})
        | kind
        | own
    )
    section = FlowOptions(**_filled(FlowOptions, flow, flow_defaults))
    # A mixture behind at most one layer tolerates a learning rate at which deeper flows and transformers diverge.
    is_shallow = wide and (section.name == "made-mog" or section.layers == 1) and section.conditioner == "residual"
    has_large_rate = is_shallow and tier in ("tiny", "small")
    # From a few seconds for a tiny table to two minutes for a large one.
    seconds = 10.0 if is_toy else min(120.0, 15.0 + rows * features / 8_000)
    train_defaults = {
        "batch_size": _batch_size(rows, is_toy),
        "learning_rate": 1.2e-2 if has_large_rate else 5e-3 if is_toy else 4e-3,
        "weight_decay": _weight_decay(tier, rows, features),
        "patience": 1.0 if is_toy or tier == "large" else 0.3,
        "seconds": None if train["steps"] != "auto" else seconds,
    } | own
    return Options(
        seed=asked["seed"],
        device=asked["device"],
        data=data_options(asked),
        flow=section,
        train=TrainOptions(**_filled(TrainOptions, train, train_defaults)),
        objective=objective_options(train, objective),
        target=TargetOptions(**_filled(TargetOptions, asked["target"], {})),
    )


def data_options(asked: Asked) -> DataOptions:
    """The options of the data, which depend on nothing else."""
    data = asked["data"]
    special = {
        "columns": None if data["columns"] == "all" else data["columns"],
        "protocol": None if data["protocol"] == "none" else data["protocol"],
        "dequantize": data["dequantize"] != "off",
        "seed": asked["seed"] if data["seed"] == "auto" else data["seed"],
    }
    return DataOptions(**_filled(DataOptions, data, {}) | special)


def objective_options(train: Mapping[str, Any], default: str = "mle") -> ObjectiveOptions:
    """The objective of the keys of ``train``; ``auto`` is the default of the kind of fit, and the path gradient."""
    name = default if train["objective"] == "auto" else train["objective"]
    return ObjectiveOptions(name=name, **_filled(ObjectiveOptions, train, {}))


def _kind(asked: Asked, tier: str) -> dict[str, Any]:
    """Return the kind of flow and the number of members that ``auto`` means; given keys are kept."""
    flow = asked["flow"]
    if flow["name"] != "auto":
        return {"name": flow["name"]} | ({"base": flow["base"]} if flow["base"] != "auto" else {})
    if tier == "toy" or not _leaves_kind_open(asked):
        return {"name": "nsf-ar"}
    if tier == "large" or flow["base"] != "auto":
        return {"name": "made-mog", "members": 1 if tier == "large" else 2 * _MEMBERS_IN_STEPS}
    return _HYBRID | {"members": _MEMBERS_IN_STEPS}


def _leaves_kind_open(asked: Asked) -> bool:
    """Whether any kind of flow may be selected: no key belongs to some kinds only, and the likelihood is maximised."""
    flow = asked["flow"]
    return (
        asked["train"]["objective"] in ("auto", "mle")
        and flow["base"] in ("auto", "full", "diagonal")
        and all(flow[key] == "auto" for key in _LAYER_KEYS)
    )


def is_open(asked: Asked, *, is_toy: bool) -> bool:
    """Whether the fit itself selects the model: the user has not chosen a flow, and the rows are those of a table."""
    return asked["flow"]["name"] == "auto" and not is_toy and _leaves_kind_open(asked)


def members_for(rows: int, step_seconds: float, seconds: float) -> int:
    """How many members of a mixture can be trained in the budget, each with the steps that so many rows need.

    Args:
        rows: Training rows.
        step_seconds: Time of a step of one flow.
        seconds: The budget.
    """
    # On protein (36,584 rows) one flow gained more from another 4,000 steps than from a second member.
    steps = 400 if rows < SMALL else 800 if rows < LARGE else 1_500 if rows < 20_000 else 10_000
    return max(1, min(_MOST_MEMBERS, int(seconds / (steps * step_seconds))))


def candidates(asked: Asked, members: int, *, rows: int, features: int) -> list[Options]:
    """Resolved candidates of ``flow=auto``; the first one is used where there is no time to compare.

    Args:
        asked: Keys that leave the kind of flow open.
        members: Members of the first candidate.
        rows: Training rows.
        features: Columns that are modelled.
    """
    flow = asked["flow"]
    mixture: dict[str, Any] = {"name": "made-mog"}
    kinds: list[tuple[dict[str, Any], int]]
    if flow["base"] != "auto":
        kinds = [(mixture, members)]
    elif rows < LARGE:
        kinds = [(_HYBRID, members), (mixture, min(_MOST_MEMBERS, 2 * members))]
    else:
        kinds = [(mixture, members), ({"name": "nsf-ar"}, max(1, members // 2))]
    sizes_are_open = all(flow[key] == "auto" for key in ("base", "conditioner", "hidden", "blocks"))
    if _MANY_FEATURES <= features <= _TOO_MANY_FEATURES and sizes_are_open:
        kinds.append((_TRANSFORMER, 1))
    out = []
    for kind, count in kinds:
        choices = kind | {"members": count, "stacking": rows < _MOST_ROWS_TO_STACK}
        open_choices = {key: value for key, value in choices.items() if flow[key] == "auto"}
        changed = dict(asked) | {"flow": dict(flow) | open_choices}
        out.append(resolve(changed, rows=rows, features=features, is_toy=False))
    return out


def _filled(options: type, section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of options that a section has; where it says ``auto``, its default, or that of the class."""
    names = {field.name for field in fields(options)}
    given = {key: value for key, value in section.items() if key in names and value != "auto"}
    return {key: value for key, value in defaults.items() if key in names} | given


def _weight_decay(tier: str, rows: int, features: int) -> float:
    """Weight decay that grows with the number of columns per row.

    At equal steps, 1 was the best of 0 to 10 on most tables of 4 to 61 columns with 78 to 1,437 rows, by 0.1 to 2.4
    nats; 0.1 was the best on most of 4 to 14 columns with 1,300 to 37,000 rows. With more rows it matters less.
    """
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
