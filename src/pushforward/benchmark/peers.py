"""Peers: flows of other libraries, built and trained as their users do, for comparison in a benchmark.

Architectures are matched as far as a library allows: the same number of layers, conditioners of the same width with the
same six linear layers (input, two residual blocks of two, output), the same spline. nflows has the layers of Neural
Spline Flows, a permutation and an LU layer between spline layers, and ActNorm in affine flows. zuko has neither LU
layers nor ActNorm; features are reversed between its layers, its splines end at 5, and dropout follows the activations.
All have the same batches, threads and training time.
"""

import copy
import importlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.benchmark.methods import METHODS, Method
from pushforward.common.errors import ConfigError
from pushforward.config.schema import Config
from pushforward.evaluate.likelihood import nll
from pushforward.train.defaults import resolve
from pushforward.train.divergence import DivergedError
from pushforward.train.objectives.likelihood import Likelihood, RowTensors
from pushforward.train.options import FlowOptions, Options, TrainOptions

PEER_VALIDATIONS = 20
"""Number of validations during training, besides the one before it."""

FEW_ROWS = 6_000
"""Number of training rows below which a peer has dropout."""

_SIZES: dict[str, Any] = {"layers": 5, "hidden": 128, "blocks": 2, "bins": 8, "bound": 5.0}
_TRAINING: dict[str, Any] = {"batch_size": 512, "learning_rate": 1e-3}
_ZUKO_BOUND = 5.0


class Peer(nn.Module):
    """Adapter from a flow of another library to the interface of a density.

    Args:
        flow: The module of the library.
        log_prob: Its log-density of rows ``(n, D)``.
    """

    def __init__(self, flow: nn.Module, log_prob: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flow = flow
        self._log_prob = log_prob

    def log_prob(self, x: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Return the log-density of rows ``(n, D)``, in nats."""
        return self._log_prob(x)

    def sample(self, n: int | tuple[int, ...], context: Tensor | None = None, /) -> Tensor:
        """Not implemented: a benchmark does not sample."""
        raise NotImplementedError("Peer: sampling is not supported")


@dataclass(frozen=True)
class Training:
    """The result of training a peer, whose module has the best weights.

    Attributes:
        steps: Number of steps.
        seconds: Training time without validation.
        validation_nll: The best validation NLL, in the units of the rows.
        curve: ``(seconds, step, validation NLL)`` of every validation.
        stop_reason: ``steps``, ``seconds`` or ``diverged``.
    """

    steps: int
    seconds: float
    validation_nll: float
    curve: list[tuple[float, int, float]]
    stop_reason: str


def peer_options(config: Config, method: Method, *, rows: int, features: int) -> Options:
    """Resolve the options of a peer.

    Args:
        config: The configuration as the user gave it.
        method: The peer.
        rows: Number of training rows.
        features: Number of columns.
    """
    asked = config.model_dump()
    ours = resolve(asked, rows=rows, features=features, is_toy=False)
    sizes: dict[str, Any] = _SIZES | {"dropout": 0.2 if rows < FEW_ROWS else 0.0}
    flow = {} if method.is_matched else {key: value for key, value in sizes.items() if asked["flow"][key] == "auto"}
    train = {key: value for key, value in _TRAINING.items() if asked["train"][key] == "auto"}
    ours = ours.replace(flow=flow, train=train)
    return ours.replace(train={"batch_size": min(ours.train.batch_size, rows)})


def build_peer(method: Method, features: int, flow: FlowOptions) -> Peer:
    """Build the flow of a peer, with weights from torch's global generator.

    Args:
        method: The peer.
        features: Number of columns.
        flow: Its sizes.

    Raises:
        ConfigError: If the library is not installed, or does not have an option.
    """
    if method.missing_package:
        raise ConfigError(f"{method.spec}: {method.library} is not installed: pip install 'pushforward[bench]'")
    with warnings.catch_warnings():
        # The libraries use functions that newer releases of torch and numpy deprecate.
        warnings.simplefilter("ignore")
        peer: Peer = METHODS[f"{method.library}:{method.flow}"](method.flow, features, flow)
        return peer


def train_peer(peer: Peer, train: RowTensors, validation: RowTensors, options: TrainOptions) -> Training:
    """Train with Adam and a cosine schedule to zero; keep the weights of the best validation.

    Validations are at shares ``(k / PEER_VALIDATIONS)^2`` of the budget: dense at the start, where small tables
    overfit. They do not count in the time budget.

    Args:
        peer: An untrained flow, on the device of the rows.
        train: Training rows.
        validation: Validation rows.
        options: Budget (``seconds``, ``steps`` or both, whichever ends first), learning rate, batch, gradient clip.

    Raises:
        DivergedError: If no validation was finite.
    """
    objective = Likelihood(train, validation, options.batch_size)
    optimizer = torch.optim.Adam(peer.parameters(), lr=options.learning_rate)
    best, weights = math.inf, copy.deepcopy(peer.state_dict())
    curve: list[tuple[float, int, float]] = []
    step, reason, due = 0, "", 0
    clock = _Clock()
    while not reason:
        spent = options.share(step, clock.seconds)
        reason = "" if spent < 1.0 else "steps" if options.steps is not None and step >= options.steps else "seconds"
        if reason or spent >= (due / PEER_VALIDATIONS) ** 2:
            with clock:
                score = nll(peer, validation.x).nll
                curve.append((round(clock.seconds, 3), step, score))
                due = math.floor(PEER_VALIDATIONS * math.sqrt(min(1.0, spent))) + 1
                if score < best:
                    best, weights = score, copy.deepcopy(peer.state_dict())
        if reason:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * spent))
        batch = objective.draw(spent).x
        peer.train()
        optimizer.zero_grad(set_to_none=True)
        loss = -peer.log_prob(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), options.gradient_clip)
        optimizer.step()
        step += 1
        if not math.isfinite(loss.item()):
            reason = "diverged"
    seconds = clock.seconds
    if not math.isfinite(best):
        raise DivergedError(f"the loss was not finite at step {step}, and no validation before it was")
    peer.load_state_dict(weights)
    return Training(step, seconds, best, curve, reason)


class _Clock:
    """Seconds since its construction, without those spent inside ``with`` blocks."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._paused = 0.0
        self._stopped: float | None = None

    @property
    def seconds(self) -> float:
        now = time.perf_counter() if self._stopped is None else self._stopped
        return now - self._began - self._paused

    def __enter__(self) -> None:
        self._stopped = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._stopped is not None
        self._paused += time.perf_counter() - self._stopped
        self._stopped = None


def _is_transformed(feature: int, layer: int) -> bool:
    """Whether a coupling layer transforms a feature: every other one, alternating between layers."""
    return (feature % 2 == 1) != (layer % 2 == 1)


def build_nflows(name: str, features: int, sizes: FlowOptions) -> Peer:
    """Build a flow of nflows: ``nsf-ar``, ``nsf-c`` or ``maf``."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        ActNorm,
        CompositeTransform,
        LULinear,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        RandomPermutation,
        ReversePermutation,
        Transform,
    )

    spline = {"num_bins": sizes.bins, "tails": "linear", "tail_bound": sizes.bound}
    net = {"num_blocks": sizes.blocks, "dropout_probability": sizes.dropout}

    def conditioner(inputs: int, outputs: int) -> nn.Module:
        network: nn.Module = ResidualNet(inputs, outputs, hidden_features=sizes.hidden, **net)
        return network

    def layer(index: int) -> Transform:
        if name == "maf":
            return MaskedAffineAutoregressiveTransform(features, sizes.hidden, **net)
        if name == "nsf-ar":
            return MaskedPiecewiseRationalQuadraticAutoregressiveTransform(features, sizes.hidden, **net, **spline)
        mask = torch.tensor([1.0 if _is_transformed(feature, index) else -1.0 for feature in range(features)])
        return PiecewiseRationalQuadraticCouplingTransform(mask, conditioner, **spline)

    def before(index: int) -> list[Transform]:
        if name == "maf":
            return [*([ReversePermutation(features)] if index else []), ActNorm(features)]
        return [RandomPermutation(features), LULinear(features, identity_init=True)] if index else []

    if name == "nsf-c" and features < 2:
        raise ConfigError("nflows:nsf-c: a coupling needs 2 columns or more")
    transforms = [transform for index in range(sizes.layers) for transform in (*before(index), layer(index))]
    flow = Flow(CompositeTransform(transforms), StandardNormal([features]))
    return Peer(flow, flow.log_prob)


def build_zuko(name: str, features: int, sizes: FlowOptions) -> Peer:
    """Build a flow of zuko: ``nsf`` or ``maf``."""
    zuko: Any = importlib.import_module("zuko")  # optional, also for mypy

    if sizes.bound != _ZUKO_BOUND and name == "nsf":
        raise ConfigError(f"zuko:nsf: its splines end at {_ZUKO_BOUND:g}; got flow.bound={sizes.bound}")
    dropout = sizes.dropout

    def activation() -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU()

    options: dict[str, Any] = {"transforms": sizes.layers, "hidden_features": [sizes.hidden] * sizes.blocks}
    options |= {"residual": True, "activation": activation}
    if name == "maf":
        flow = zuko.flows.MAF(features, **options)
    else:
        flow = zuko.flows.NSF(features, bins=sizes.bins, **options)
    return Peer(flow, lambda x: flow().log_prob(x))
