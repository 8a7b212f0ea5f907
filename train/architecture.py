"""Build the model that a configuration asks for, and initialise it from the training rows."""

import copy

import torch
from torch import nn

from pushforward.common.errors import ConfigError
from pushforward.flows import Flow, Mixture, Model, build, build_mixture, members_of
from pushforward.flows.architectures import SPLINE_OPTIONS, map_options
from pushforward.flows.random_state import seeded
from pushforward.flows.registries import FLOWS, MASKED_NETWORKS
from pushforward.train.data import Prepared
from pushforward.train.gaussian import initialize_base
from pushforward.train.options import FlowOptions

_INITIAL_ROWS = 20_000
_TRIED_ROWS = 3

NEUTRAL = ("tails", "linear", "unconditional", "conditioner", "univariate")
"""Keys whose defaults say that there is nothing special, which is true of any flow."""


def build_model(
    flow: FlowOptions, features: int, context: int = 0, *, seed: int, embedding: nn.Module | None = None
) -> Model:
    """Build the model of the options of a flow; the seed alone decides its initial weights.

    Args:
        flow: The options of the flow.
        features: Columns that are modelled.
        context: Columns that are conditioned on.
        seed: Seed of the weights and of the column orders.
        embedding: A module from context rows ``(n, context)`` to those that the flow takes; each member gets a copy.

    Raises:
        ConfigError: If the keys do not go together.
    """
    if embedding is not None:
        context = embedded_width(embedding, context)
    options = {key: value for key, value in vars(flow).items() if key not in ("name", "members", "stacking")}
    with seeded(seed):
        try:
            if flow.members == 1:
                model: Model = build(flow.name, features, context, **options)
            else:
                model = build_mixture(flow.name, features, context, members=flow.members, **options)
        except ValueError as error:
            raise ConfigError(f"flow: {error}") from error
    if embedding is None:
        return model
    members = [Flow(m.base, m.bijection, embedding=copy.deepcopy(embedding).float()) for m in members_of(model)]
    return Mixture(members, model.weights) if isinstance(model, Mixture) else members[0]


def embedded_width(embedding: nn.Module, context: int) -> int:
    """Return the number of columns ``E`` that an embedding makes of ``context`` columns, in float32.

    Raises:
        ConfigError: If it is not a module from rows ``(n, context)`` to finite rows ``(n, E)``.
    """
    expected = f"embedding: expected a torch.nn.Module from rows (n, {context}) to rows (n, E)"
    if not isinstance(embedding, nn.Module):
        raise ConfigError(f"{expected}; got a {type(embedding).__name__}")
    try:
        with torch.no_grad():
            rows = copy.deepcopy(embedding).float().cpu().eval()(torch.zeros(_TRIED_ROWS, context))
    except Exception as error:  # whatever a user's module raises
        raise ConfigError(f"{expected}; it fails: {' '.join(str(error).split())}") from error
    if not isinstance(rows, torch.Tensor):
        raise ConfigError(f"{expected}; it returns a {type(rows).__name__}")
    if rows.dim() != 2 or len(rows) != _TRIED_ROWS or not rows.shape[1]:
        raise ConfigError(f"{expected}; of ({_TRIED_ROWS}, {context}) it makes {tuple(rows.shape)}")
    if rows.dtype != torch.float32:
        raise ConfigError(f"{expected} in float32; it returns {str(rows.dtype).removeprefix('torch.')}")
    if not bool(rows.isfinite().all()):
        raise ConfigError(f"{expected}; of zeros it makes numbers that are not finite")
    return rows.shape[1]


def describe(flow: FlowOptions) -> str:
    """Name a flow and its number of members, as in ``made-mog x 8``."""
    name = f"{flow.name} + made-mog" if flow.base == "made-mog" else flow.name
    return name if flow.members == 1 else f"{name} x {flow.members}"


def describe_in_words(flow: FlowOptions) -> str:
    """Describe a flow for readers who do not know the names, as in ``an average of 8 flows (made-mog)``."""
    kind = f"{flow.name} with a made-mog base" if flow.base == "made-mog" else flow.name
    return f"one flow ({kind})" if flow.members == 1 else f"an average of {flow.members} flows ({kind})"


def uses_key(flow: FlowOptions, key: str) -> bool:
    """Whether a key of ``flow``, such as ``bins``, has an effect on a flow of these options."""
    architecture = FLOWS[flow.name]
    if key in SPLINE_OPTIONS:
        has_spline = flow.elementwise or flow.unconditional == "spline"
        univariate = flow.univariate if architecture.univariate and flow.univariate else architecture.univariate
        return has_spline or (bool(univariate) and key in map_options(univariate))
    if key == "members":  # Gaussians with equal initial weights stay equal
        return flow.members == 1 or flow.name != "gaussian" or flow.base in ("low-rank", "mixture", "made-mog")
    if key == "conditioner":
        networks = architecture.networks if key in architecture.uses else ()
        networks += (MASKED_NETWORKS,) if flow.base == "made-mog" else ()
        return any(flow.conditioner in known.names() for known in networks)
    network = {"hidden", "blocks", "dropout", "components"} if flow.base == "made-mog" else set[str]()
    return key in ("name", "base", "elementwise", "stacking") or key in architecture.uses | network


def sizes_of(prepared: Prepared) -> tuple[int, int]:
    """Number of columns that are modelled, and of columns that are conditioned on."""
    return prepared.dataset.rows.shape[1], prepared.dataset.context.shape[1]


def initialize(model: Model, prepared: Prepared, device: torch.device) -> Model:
    """Move a new model to its device and make it the Gaussian that fits the training rows."""
    train = prepared.training_rows(device)
    model = prepared.with_tails(model).to(device)
    rows = torch.randperm(len(train), device=device)[:_INITIAL_ROWS]
    context, weights = (None if part is None else part[rows] for part in (train.context, train.weights))
    initialize_base(model, train.noised()[rows], context, weights)
    return model
