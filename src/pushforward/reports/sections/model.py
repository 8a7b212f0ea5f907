"""What a run's page says of the density itself: which flow it is, how it was chosen, what it is averaged with."""

from collections.abc import Mapping
from typing import NamedTuple

from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, count, duration, fixed, minus, plain
from pushforward.reports.page import facts, figure, table
from pushforward.runs.record import Facts, RunRecord, group, items, number

FLOW, GAUSSIAN, KERNEL = "flow", "Gaussian", "kernel density"

# One of them, and several.
_KINDS: Mapping[str, tuple[str, str]] = {
    "realnvp": ("a flow of affine couplings", "flows of affine couplings"),
    "maf": ("a masked affine autoregressive flow", "masked affine autoregressive flows"),
    "iaf": ("an inverse affine autoregressive flow", "inverse affine autoregressive flows"),
    "nsf-c": ("a flow of spline couplings", "flows of spline couplings"),
    "nsf-ar": ("an autoregressive spline flow", "autoregressive spline flows"),
    "made-mog": (
        "a masked network with a mixture of Gaussians for every column",
        "masked networks with a mixture of Gaussians for every column",
    ),
    "gaussian": ("a single law without layers", "laws without layers"),
}

_BASES: Mapping[str, str] = {
    "diagonal": "a Gaussian with independent columns",
    "low-rank": "a Gaussian with a covariance of low rank",
    "full": "a Gaussian with full covariance",
    "made-mog": "autoregressive mixtures of Gaussians",
    "mixture": "a mixture of eight Gaussians",
    "student-t": "independent Student t laws",
    "laplace": "independent Laplace laws",
    "logistic": "independent logistic laws",
    "uniform": "uniform laws behind a logit",
    "beta": "beta laws behind a logit",
    "gamma": "gamma laws behind a logarithm",
}

_MIXTURE = "made-mog"
_SPLINES = ("nsf-ar", "nsf-c")
_WITHOUT_LAYERS = (_MIXTURE, "gaussian")


class Part(NamedTuple):
    """One kind of density in the average that was kept.

    Attributes:
        kind: ``flow``, ``Gaussian`` or ``kernel density``.
        members: How many densities of that kind there are.
        weight: What they weigh together.
    """

    kind: str
    members: int
    weight: float


def parts_of(record: RunRecord) -> list[Part]:
    """What the density that was kept is made of, by the description of the model; empty where there is none."""
    described = group(record.model, "flow")
    members = items(described, "members") or ([described] if described else [])
    found_weights = described.get("weights")
    weights = found_weights if isinstance(found_weights, list) else []
    shares = [number({"weight": weight}, "weight") for weight in weights]
    if len(shares) != len(members) or None in shares:
        shares = [1.0] * len(members)
    found: dict[str, list[float]] = {}
    for member, share in zip(members, shares, strict=True):
        found.setdefault(_kind_of(member), []).append(share or 0.0)
    total = sum(sum(of_kind) for of_kind in found.values()) or 1.0
    return [
        Part(kind, len(found[kind]), sum(found[kind]) / total) for kind in (FLOW, GAUSSIAN, KERNEL) if kind in found
    ]


def in_words(record: RunRecord) -> str:
    """The density in a sentence; empty where the configuration does not say."""
    config, parts = record.config, parts_of(record)
    if record.flow == "vae":
        return _autoencoder(record)
    others = [_law(record) if part.kind == GAUSSIAN else "a kernel density" for part in parts if part.kind != FLOW]
    flows = sum(part.members for part in parts if part.kind == FLOW)
    if others and not flows:
        return _sentence(_average(others))
    name, base = str(config.get("flow.name")), str(config.get("flow.base"))
    if name not in _KINDS:
        return ""
    flows = flows or _whole(config, "flow.members") or 1
    single, several = _KINDS[name]
    text = single if flows == 1 else f"{flows} {several}"
    text += f" (base: {_BASES[base]})" if base in _BASES and name != _MIXTURE else ""
    return _sentence(_average([text, *others], always=flows > 1))


def model(record: RunRecord) -> Child:
    """The section about the density: how it was chosen, its sizes, and what each part of it weighs."""
    shown: list[Child] = []
    if record.flow != "vae" and (sizes := _sizes(record)):
        shown.append(figure(facts(sizes), _sizes_said(record)))
    parts = parts_of(record)
    beside: list[Child] = []
    if len(parts) > 1:
        beside.append(figure(_weights(parts), _STACKED, title="What is averaged"))
    elif parts and parts[0].members > 1:
        said = f"The densities of the {parts[0].members} flows are averaged, each with the same weight."
        beside.append(figure(None, said, title="What is averaged"))
    if record.selection:
        beside.append(_choice(record))
    if beside:
        shown.append(tag("div", *beside, class_="two top") if len(beside) > 1 else beside[0])
    return join(shown) if shown else None


_STACKED = (
    "The density is the weighted mean of the densities of its parts. Their weights maximise the likelihood of the "
    "validation rows, a row's worth of prior included; parts of less than 0.01 are left out."
)


def _weights(parts: list[Part]) -> Child:
    rows = [
        (part.kind if part.members == 1 else f"{part.members} {part.kind}s", f"{part.weight:.3f}") for part in parts
    ]
    return table("Weight of each part", ("part", "weight"), rows, hide_caption=True)


def _choice(record: RunRecord) -> Child:
    """How ``flow=auto`` came to kind and number, from ``selection.json``."""
    selection = record.selection
    step, took, budget = (
        number(selection, "step_seconds"),
        number(selection, "seconds"),
        number(record.config, "train.seconds"),
    )
    said = ["Left to the fit (flow=auto)."]
    if step is not None:
        time = f"{1000 * step:.1f} ms" if step < 1 else duration(step)
        said.append(
            f"A step of one flow took {time}; unless flow.members said how many, there are as many flows as there was "
            "time for, at most 16."
        )
    candidates = items(selection, "candidates")
    if candidates:
        said.append(
            "Each kind was trained for a share of the time; the one with the lowest validation NLL went on from where "
            "it stood."
        )
    else:
        said.append("The kinds were not compared: the numbers of rows and columns decided.")
    if took is not None:
        said.append(f"The choice took {duration(took)}" + (f" of {duration(budget)}." if budget else "."))
    rows = [
        (_readable(str(one.get("flow", NOTHING))), fixed(number(one, "val_nll"), 3), count(number(one, "steps")))
        for one in candidates
    ]
    head = ("flow", "validation NLL (nats, standardised units)", "steps")
    shown = table("Candidates on validation rows", head, rows, strong_row=0, hide_caption=True) if rows else None
    return figure(shown, " ".join(said), title="How it was chosen")


def _sizes(record: RunRecord) -> list[tuple[str, Child]]:
    """What says how large the flow is, without the keys that mean nothing in one of this kind."""
    config = record.config
    name, base = str(config.get("flow.name")), str(config.get("flow.base"))
    if name not in _KINDS:
        return []
    parts = parts_of(record)
    if parts and all(part.kind != FLOW for part in parts):
        return []  # of what was fitted and given up
    is_layered, is_mixture = name not in _WITHOUT_LAYERS, _MIXTURE in (name, base)
    rows: list[tuple[str, Child]] = [("Kind", name)]
    if is_layered:
        rows.append(("Layers", _told(config, "flow.layers")))
    if is_layered or is_mixture:
        transformer = config.get("flow.conditioner") == "transformer"
        rows.append(("Hidden units", _told(config, "flow.hidden")))
        rows.append(("Transformer blocks" if transformer else "Residual blocks", _told(config, "flow.blocks")))
    if name in _SPLINES:
        rows.append(("Bins of a spline", _told(config, "flow.bins")))
    if is_mixture:
        rows.append(("Gaussians of a mixture", _told(config, "flow.components")))
    if name != _MIXTURE and base != "None":
        rows.append(("Base", base))
    if is_layered or is_mixture:
        rows.append(("Dropout", _told(config, "flow.dropout")))
    rows.append(("Batch", f"{_told(config, 'train.batch_size')} rows"))
    rows.append(("Highest learning rate", _told(config, "train.learning_rate")))
    rows.append(("Weight decay", _told(config, "train.weight_decay")))
    return rows


def _sizes_said(record: RunRecord) -> str | None:
    members = sum(part.members for part in parts_of(record) if part.kind == FLOW)
    if members < 2:
        return None
    return f"Of each of the {members} flows; they differ in their initial weights and in the order of the columns."


def _autoencoder(record: RunRecord) -> str:
    found = record.results
    latent, prior, posterior = (found.get(key) for key in ("latent", "prior", "posterior"))
    if latent is None:
        return ""
    return f"A variational autoencoder with {latent} latent coordinates, prior {prior}, posterior {posterior}."


def _kind_of(member: Facts) -> str:
    base = group(member, "base").get("part")
    layers = [str(layer.get("part")) for layer in items(group(member, "bijection"), "bijections")]
    if base == "kernel-density":
        return KERNEL
    return GAUSSIAN if base == "gaussian" and set(layers) <= {"standardize"} else FLOW


def _law(record: RunRecord) -> str:
    """The Gaussian that is the density, or a part of it."""
    described = group(record.model, "flow")
    for member in items(described, "members") or [described]:
        if _kind_of(member) == GAUSSIAN:
            return _BASES.get(str(group(member, "base").get("covariance")), "a Gaussian")
    return "a Gaussian"


def _readable(name: str) -> str:
    return name.replace(" x ", " \u00d7 ")


def _whole(config: Facts, key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _told(config: Facts, key: str) -> str:
    value = config.get(key)
    known = number(config, key)
    return plain(known) if known is not None else minus(str(value)) if value is not None else NOTHING


def _average(parts: list[str], *, always: bool = False) -> str:
    """What is averaged, in words; a single density is none, unless it stands for several."""
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"the average of {listed}" if always or len(parts) > 1 else listed


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
