"""The section about the model: kind and size of the flow, model selection, averaged parts."""

from collections.abc import Mapping
from typing import NamedTuple

from pushforward.common.markup import Child, join, tag
from pushforward.common.numbers import NOTHING, count, duration, fixed, minus, plain
from pushforward.reports.page import facts, figure, table
from pushforward.runs.record import Facts, RunRecord, group, items, number

# The names that train.stacking logs, without importing torch.
FLOW, GAUSSIAN, KERNEL = "flow", "Gaussian", "kernel density"

# Singular and plural.
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
    "gaussian": ("a base distribution without layers", "base distributions without layers"),
}

_BASES: Mapping[str, str] = {
    "diagonal": "a Gaussian with independent columns",
    "low-rank": "a Gaussian with a covariance of low rank",
    "full": "a Gaussian with full covariance",
    "made-mog": "autoregressive mixtures of Gaussians",
    "mixture": "a mixture of eight Gaussians",
    "student-t": "independent Student t distributions",
    "laplace": "independent Laplace distributions",
    "logistic": "independent logistic distributions",
    "uniform": "logit-transformed uniform distributions",
    "beta": "logit-transformed beta distributions",
    "gamma": "log-transformed gamma distributions",
}

_MIXTURE = "made-mog"
_SPLINES = ("nsf-ar", "nsf-c")
_WITHOUT_LAYERS = (_MIXTURE, "gaussian")


class Part(NamedTuple):
    """The members of one kind in an averaged density.

    Attributes:
        kind: ``flow``, ``Gaussian`` or ``kernel density``.
        members: Number of members of this kind.
        weight: Sum of their weights.
    """

    kind: str
    members: int
    weight: float


def parts_of(record: RunRecord) -> list[Part]:
    """Return the parts of the saved density from its description; empty without one."""
    described = group(record.model, "flow")
    members = items(described, "members") or ([described] if described else [])
    recorded = described.get("weights")
    weights = recorded if isinstance(recorded, list) else []
    shares = [number({"weight": weight}, "weight") for weight in weights]
    if len(shares) != len(members) or None in shares:
        shares = [1.0] * len(members)
    by_kind: dict[str, list[float]] = {}
    for member, share in zip(members, shares, strict=True):
        by_kind.setdefault(_kind_of(member), []).append(share or 0.0)
    total = sum(sum(of_kind) for of_kind in by_kind.values()) or 1.0
    return [
        Part(kind, len(by_kind[kind]), sum(by_kind[kind]) / total)
        for kind in (FLOW, GAUSSIAN, KERNEL)
        if kind in by_kind
    ]


def model_sentence(record: RunRecord) -> str:
    """Describe the density in a sentence; empty if the configuration does not say."""
    config, parts = record.config, parts_of(record)
    if "latent" in record.results:
        return _autoencoder(record)
    others = [
        _gaussian_name(record) if part.kind == GAUSSIAN else "a kernel density" for part in parts if part.kind != FLOW
    ]
    flows = sum(part.members for part in parts if part.kind == FLOW)
    if others and not flows:
        return _sentence(_average(others))
    name, base = str(config.get("flow.name")), str(config.get("flow.base"))
    if name not in _KINDS:
        return ""
    flows = flows or _integer(config, "flow.members") or 1
    single, several = _KINDS[name]
    text = single if flows == 1 else f"{flows} {several}"
    text += f" (base: {_BASES[base]})" if base in _BASES and name != _MIXTURE else ""
    return _sentence(_average([text, *others], always=flows > 1))


def model(record: RunRecord) -> Child:
    """Build the section about the model."""
    shown: list[Child] = []
    if sizes := _sizes(record):
        shown.append(figure(facts(sizes), _sizes_caption(record)))
    parts = parts_of(record)
    beside: list[Child] = []
    if len(parts) > 1:
        beside.append(figure(_weights(parts), _STACKING_CAPTION, title="Averaged densities"))
    elif parts and parts[0].members > 1:
        caption = f"The densities of the {parts[0].members} flows are averaged with equal weights."
        beside.append(figure(None, caption, title="Averaged densities"))
    if record.selection:
        beside.append(_selection(record))
    if beside:
        shown.append(tag("div", *beside, class_="two top") if len(beside) > 1 else beside[0])
    return join(shown) if shown else None


_STACKING_CAPTION = (
    "The density is the weighted average of its parts (stacking). The weights maximise the likelihood of the "
    "validation rows, with a prior that counts as one row; parts with weights below 0.01 are left out."
)


def _weights(parts: list[Part]) -> Child:
    rows = [
        (part.kind if part.members == 1 else f"{part.members} {part.kind}s", f"{part.weight:.3f}") for part in parts
    ]
    return table("Weight of each part", ("part", "weight"), rows, hide_caption=True)


def _selection(record: RunRecord) -> Child:
    """Describe how ``flow=auto`` chose kind and number of the flows, from ``selection.json``."""
    selection = record.selection
    step, seconds, budget = (
        number(selection, "step_seconds"),
        number(selection, "seconds"),
        number(record.config, "train.seconds"),
    )
    sentences = ["The flow was chosen automatically (flow=auto)."]
    if step is not None:
        time = f"{1000 * step:.1f} ms" if step < 1 else duration(step)
        sentences.append(
            f"A step of one flow took {time}; unless flow.members is set, as many flows are trained as the time "
            "allows, at most 16."
        )
    candidates = items(selection, "candidates")
    if candidates:
        share = "steps" if step is None else "time"
        sentences.append(
            f"Each candidate was trained for a share of the {share}; the one with the lowest validation NLL was "
            "trained further."
        )
    else:
        sentences.append("Candidates were not compared: the numbers of rows and columns decided.")
    if seconds is not None and step is not None:  # not where the budget is in steps
        sentences.append(f"Model selection took {duration(seconds)}" + (f" of {duration(budget)}." if budget else "."))
    rows = [
        (_with_times_sign(str(one.get("flow", NOTHING))), fixed(number(one, "val_nll"), 3), count(number(one, "steps")))
        for one in candidates
    ]
    head = ("flow", "validation NLL (nats, standardised units)", "steps")
    shown = table("Candidates on validation rows", head, rows, strong_row=0, hide_caption=True) if rows else None
    return figure(shown, " ".join(sentences), title="Model selection")


def _sizes(record: RunRecord) -> list[tuple[str, Child]]:
    """Return the hyperparameters that apply to this kind of flow."""
    config = record.config
    name, base = str(config.get("flow.name")), str(config.get("flow.base"))
    if name not in _KINDS:
        return []
    parts = parts_of(record)
    if parts and all(part.kind != FLOW for part in parts):
        return []  # the flow was discarded
    is_layered, is_mixture = name not in _WITHOUT_LAYERS, _MIXTURE in (name, base)
    rows: list[tuple[str, Child]] = [("Kind", name)]
    if is_layered:
        rows.append(("Layers", _config_text(config, "flow.layers")))
    if is_layered or is_mixture:
        transformer = config.get("flow.conditioner") == "transformer"
        rows.append(("Hidden units", _config_text(config, "flow.hidden")))
        rows.append(("Transformer blocks" if transformer else "Residual blocks", _config_text(config, "flow.blocks")))
    if name in _SPLINES:
        rows.append(("Spline bins", _config_text(config, "flow.bins")))
    if is_mixture:
        rows.append(("Mixture components", _config_text(config, "flow.components")))
    if name != _MIXTURE and base != "None":
        rows.append(("Base", base))
    if is_layered or is_mixture:
        rows.append(("Dropout", _config_text(config, "flow.dropout")))
    rows.append(("Batch size", f"{_config_text(config, 'train.batch_size')} rows"))
    rows.append(("Maximum learning rate", _config_text(config, "train.learning_rate")))
    rows.append(("Weight decay", _config_text(config, "train.weight_decay")))
    return rows


def _sizes_caption(record: RunRecord) -> str | None:
    members = sum(part.members for part in parts_of(record) if part.kind == FLOW)
    if members < 2:
        return None
    return f"Of each of the {members} flows, which differ in their initial weights and the order of the columns."


def _autoencoder(record: RunRecord) -> str:
    latent, prior, posterior = (record.results.get(key) for key in ("latent", "prior", "posterior"))
    return f"A variational autoencoder with {latent} latent features, prior {prior}, posterior {posterior}."


def _kind_of(member: Facts) -> str:
    base = group(member, "base").get("part")
    layers = [str(layer.get("part")) for layer in items(group(member, "bijection"), "bijections")]
    if base == "kernel-density":
        return KERNEL
    return GAUSSIAN if base == "gaussian" and set(layers) <= {"standardize", "log-tails"} else FLOW


def _gaussian_name(record: RunRecord) -> str:
    """Describe the Gaussian part of the density."""
    described = group(record.model, "flow")
    for member in items(described, "members") or [described]:
        if _kind_of(member) == GAUSSIAN:
            return _BASES.get(str(group(member, "base").get("covariance")), "a Gaussian")
    return "a Gaussian"


def _with_times_sign(name: str) -> str:
    return name.replace(" x ", " \u00d7 ")


def _integer(config: Facts, key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _config_text(config: Facts, key: str) -> str:
    value = config.get(key)
    known = number(config, key)
    return plain(known) if known is not None else minus(str(value)) if value is not None else NOTHING


def _average(parts: list[str], *, always: bool = False) -> str:
    """Join parts to a phrase; a single part is an average only with ``always``, if it describes several densities."""
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"the average of {listed}" if always or len(parts) > 1 else listed


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
