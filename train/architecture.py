"""Build the model that a configuration asks for, and initialise it from the training rows."""

import torch

from pushforward.common.errors import ConfigError
from pushforward.config.schema import FlowConfig
from pushforward.flows import Model, build, build_mixture
from pushforward.train.data import Prepared
from pushforward.train.gaussian import initialize_base

_INITIAL_ROWS = 20_000


def build_model(flow: FlowConfig, features: int, context: int = 0, *, seed: int) -> Model:
    """Build the model of a resolved ``flow`` section; the seed alone decides its initial weights.

    Args:
        flow: The section, without ``auto``.
        features: Columns that are modelled.
        context: Columns that are conditioned on.
        seed: Seed of the weights and of the column orders.

    Raises:
        ConfigError: If the keys do not go together.
    """
    options = flow.model_dump(exclude={"name", "members", "stacking"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if flow.members == 1:
                return build(flow.name, features, context, **options)
            assert flow.members != "auto"  # resolve has decided it
            return build_mixture(flow.name, features, context, members=flow.members, **options)
        except ValueError as error:
            raise ConfigError(f"flow: {error}") from None


def describe(flow: FlowConfig) -> str:
    """Name a flow and its number of members, as in ``made-mog x 8``."""
    name = f"{flow.name} + made-mog" if flow.base == "made-mog" else flow.name
    return name if flow.members in (1, "auto") else f"{name} x {flow.members}"


def describe_in_words(flow: FlowConfig) -> str:
    """Describe a flow for readers who do not know the names, as in ``an average of 8 flows (made-mog)``."""
    kind = f"{flow.name} with a made-mog base" if flow.base == "made-mog" else flow.name
    return f"one flow ({kind})" if flow.members in (1, "auto") else f"an average of {flow.members} flows ({kind})"


def idle_keys(flow: FlowConfig) -> tuple[str, ...]:
    """List the keys that have a value but no effect with this name and base, such as bins without splines."""
    is_layered = flow.name not in ("made-mog", "gaussian")
    is_mixture = "made-mog" in (flow.name, flow.base)
    has_splines = flow.name in ("nsf-ar", "nsf-c") or flow.elementwise is True or flow.unconditional == "spline"
    used = {
        ("layers", "linear"): is_layered,
        ("bins", "bound", "tails"): has_splines,
        ("components",): is_mixture,
        ("hidden", "blocks", "dropout"): is_layered or is_mixture,
        # Gaussians with equal initial weights stay equal.
        ("members",): flow.name != "gaussian" or flow.base in ("low-rank", "mixture", "made-mog"),
        ("conditioner",): is_mixture or flow.name in ("maf", "iaf", "nsf-ar"),
    }
    idle = [key for keys, is_used in used.items() if not is_used for key in keys if getattr(flow, key) != "auto"]
    return tuple(key for key in idle if key != "members" or flow.members != 1)


def sizes_of(prepared: Prepared) -> tuple[int, int]:
    """Number of columns that are modelled, and of columns that are conditioned on."""
    return prepared.dataset.rows.shape[1], prepared.dataset.context.shape[1]


def initialize(model: Model, prepared: Prepared, device: torch.device, *, seed: int) -> Model:
    """Move a new model to its device and make it the Gaussian that fits the training rows."""
    torch.manual_seed(seed)
    train = prepared.training_rows(device)
    model = prepared.with_tails(model).to(device)
    rows = torch.randperm(len(train), device=device)[:_INITIAL_ROWS]
    initialize_base(model, train.noised()[rows], None if train.context is None else train.context[rows])
    return model
