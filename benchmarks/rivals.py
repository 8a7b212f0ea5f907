"""The same architecture in pushforward and in each other library (peer).

All have the same number of layers, conditioners of the same width with the same six linear layers (input, two residual
blocks of two, output), the same spline with the same bins and bound, and between the layers a permutation with an LU
layer (spline flows) or ActNorm (affine flows), as far as the library has them. The differences:

- ``nflows``: the same transforms in the same order as pushforward, masks included. ``nflows-plain`` has no LU layers
  and no ActNorm and only reverses the features, so it is lighter. ``nflows-fused`` trains with torch's fused AdamW.
- ``zuko``: no LU layers and no ActNorm; features are reversed between layers. ``MaskedMLP(residual=True)`` has the six
  linear layers. ``zuko-mlp`` has three hidden layers instead, as in its examples, with fewer parameters.
- ``normflows``: the splines of nflows; its couplings also transform the identity half by a spline. Its masked affine
  layer runs in the sampling direction, so it is inverted here (``Reverse``); otherwise log_prob would take D passes.
- ``torchflows``: tanh MLPs of six linear layers in the autoregressive flows, its own ActNorm and affine layers between
  them, reversals instead of LU layers.

Parameter counts are reported beside every time. Peers run eagerly and train with ``torch.optim.Adam``, as in their
examples.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pushforward.train.optimizer import ClippedAdamW

FLOWS = ("realnvp", "maf", "nsf-c", "nsf-ar")
PEERS = ("nflows", "nflows-plain", "nflows-fused", "zuko", "zuko-mlp", "normflows", "torchflows")
_COUPLINGS = ("realnvp", "nsf-c")
_SPLINES = ("nsf-c", "nsf-ar")
# Peers use functions that newer releases of torch and numpy deprecate.
warnings.filterwarnings("ignore", module=r"(nflows|zuko|normflows|torchflows)(\.|$)")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the flow, the same in each library as far as it has them."""

    layers: int = 5
    hidden: int = 128
    blocks: int = 2
    bins: int = 8
    bound: float = 5.0


@dataclass(frozen=True)
class Rival:
    """A flow of any library behind a common interface."""

    name: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    fused: bool = False
    """Whether it trains with fused AdamW."""
    ours: bool = False
    """Whether it trains with the optimiser of pushforward."""
    within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def optimizer(self, learning_rate: float) -> Optimizer:
        if self.ours:
            return ClippedAdamW([{"params": self.parameters(), "weight_decay": 0.0}], learning_rate)
        if self.fused:
            return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
        return torch.optim.Adam(self.parameters(), lr=learning_rate)

    def updating(self, optimizer: Optimizer) -> Callable[[], None]:
        """Return a function that clips the gradient and updates the weights, as users of the library do."""
        parameters = self.parameters()

        def call() -> None:
            if isinstance(optimizer, ClippedAdamW):
                optimizer.clipped_step(parameters, 5.0)
                return
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()

        return call

    def step(self, x: Tensor, learning_rate: float = 1e-4) -> Callable[[], None]:
        """Return a training step on a fixed batch: gradient of the mean, clipping, update."""
        optimizer = self.optimizer(learning_rate)
        update = self.updating(optimizer)

        def call() -> None:
            with self.within():
                optimizer.zero_grad(set_to_none=True)
                (-self.log_prob(x).mean()).backward()
                update()

        return call

    def scoring(self, x: Tensor) -> Callable[[], None]:
        def call() -> None:
            with self.within(), torch.no_grad():
                self.log_prob(x)

        return call

    def sampling(self, points: int) -> Callable[[], None]:
        def call() -> None:
            with self.within(), torch.no_grad():
                self.sample(points)

        return call


def available(names: Sequence[str]) -> list[str]:
    """Return the flows whose library is installed; print the other libraries."""
    here = [name for name in names if importlib.util.find_spec(name.split("-")[0]) is not None]
    missing = sorted({name.split("-")[0] for name in names if name not in here})
    if missing:
        print(f"left out, not installed: {', '.join(missing)} (pip install -e '.[bench]')\n")
    return here


def build(
    library: str,
    flow: str,
    features: int,
    sizes: Sizes | None = None,
    *,
    seed: int = 0,
    away: float = 0.0,
    device: str = "cpu",
) -> Rival:
    """Make a flow of a library, with weights that follow from the seed.

    Args:
        library: ``pushforward``, ``pushforward-eager`` or one of ``PEERS``.
        flow: One of ``FLOWS``.
        features: Number of features.
        sizes: Architecture.
        seed: Seed of the weights.
        away: Standard deviation of noise added to the weights, because the identity is a special case for splines.
        device: Device of the flow.
    """
    sizes = sizes or Sizes()
    makers = {
        "pushforward": _pushforward,
        "nflows": _nflows,
        "zuko": _zuko,
        "normflows": _normflows,
        "torchflows": _torchflows,
    }
    torch.manual_seed(seed)
    rival = makers[library.split("-")[0]](library, flow, features, sizes)
    rival.module.to(device)
    if away:
        with torch.no_grad():
            for parameter in rival.parameters():
                parameter.add_(away * torch.randn_like(parameter))
    return rival


def conditioner_shapes(flow: str, features: int, sizes: Sizes | None = None) -> list[tuple[int, int]]:
    """Return inputs and outputs of every linear layer of every conditioner."""
    sizes = sizes or Sizes()
    outputs = 3 * sizes.bins - 1 if flow in _SPLINES else 2
    shapes = []
    for layer in range(sizes.layers):
        transformed = sum(_is_transformed(i, layer) for i in range(features)) if flow in _COUPLINGS else features
        inputs = features - transformed if flow in _COUPLINGS else features
        shapes.append((inputs, sizes.hidden))
        shapes += [(sizes.hidden, sizes.hidden)] * (2 * sizes.blocks)
        shapes.append((sizes.hidden, transformed * outputs))
    return shapes


def products(
    shapes: Sequence[tuple[int, int]], rows: int, *, backward: bool, device: str = "cpu"
) -> Callable[[], None]:
    """Return a function with the matrix products alone: dense, no bias, no mask, nothing allocated.

    With ``backward`` also the gradients of inputs and weights, so three products per layer.
    """
    buffers = {}
    for inputs, outputs in set(shapes):
        x, w, y = (torch.randn(*size, device=device) for size in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        buffers[inputs, outputs] = (x, w, y, torch.empty_like(x), torch.empty_like(w), torch.empty_like(y))

    def call() -> None:
        for shape in shapes:
            x, w, y, x_grad, w_grad, out = buffers[shape]
            torch.mm(x, w.t(), out=out)
            if backward:
                torch.mm(y, w, out=x_grad)
                torch.mm(y.t(), x, out=w_grad)

    return call


def product_flops(shapes: Sequence[tuple[int, int]], rows: int, *, backward: bool) -> float:
    """Floating-point operations of ``products``."""
    return (6.0 if backward else 2.0) * rows * sum(inputs * outputs for inputs, outputs in shapes)


def splines(features: int, points: int, sizes: Sizes | None = None) -> dict[str, Callable[[], object]]:
    """Return the spline alone by library, forward and backward with gradients of values and parameters."""
    sizes = sizes or Sizes()
    bins, bound = sizes.bins, sizes.bound
    torch.manual_seed(0)
    x = torch.randn(points, features).requires_grad_()
    raw = torch.randn(points, features, 3 * bins - 1).requires_grad_()

    def both(forward: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
        def call() -> object:
            z, log_derivative = forward()
            return torch.autograd.grad(z.sum() + log_derivative.sum(), (x, raw))

        return call

    calls: dict[str, Callable[[], object]] = {}
    from pushforward.flows import RationalQuadraticSpline

    spline = RationalQuadraticSpline(bins=bins, bound=bound)
    calls["pushforward"] = both(lambda: spline.forward(x, raw))

    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

    calls["nflows"] = both(
        lambda: unconstrained_rational_quadratic_spline(
            x, raw[..., :bins], raw[..., bins : 2 * bins], raw[..., 2 * bins :], tails="linear", tail_bound=bound
        )
    )
    if importlib.util.find_spec("zuko"):
        from zuko.transforms import MonotonicRQSTransform

        calls["zuko"] = both(
            lambda: MonotonicRQSTransform(*raw.split([bins, bins, bins - 1], -1), bound=bound).call_and_ladj(x)
        )
    return calls


def _is_transformed(feature: int, layer: int) -> bool:
    """Whether a coupling layer transforms a feature: every other one, alternating between layers."""
    return (feature % 2 == 1) != (layer % 2 == 1)


def _pushforward(library: str, flow: str, features: int, sizes: Sizes) -> Rival:
    from pushforward.flows import build as build_flow

    made = build_flow(
        flow,
        features,
        layers=sizes.layers,
        hidden=sizes.hidden,
        blocks=sizes.blocks,
        bins=sizes.bins,
        bound=sizes.bound,
    )
    within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    if library == "pushforward-eager":
        try:
            from pushforward.flows.kernels import native
        except ImportError:
            print("pushforward-eager: this version has no native kernels; the row repeats the first")
        else:
            within = native.disabled
    return Rival(library, made, made.log_prob, made.sample, ours=library == "pushforward", fused=True, within=within)


def _nflows(library: str, flow: str, features: int, sizes: Sizes) -> Rival:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        ActNorm,
        AffineCouplingTransform,
        CompositeTransform,
        LULinear,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        RandomPermutation,
        ReversePermutation,
        Transform,
    )

    plain = library == "nflows-plain"

    def net(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=sizes.hidden, num_blocks=sizes.blocks)

    def layer(index: int) -> Transform:
        if flow == "maf":
            return MaskedAffineAutoregressiveTransform(features, sizes.hidden, num_blocks=sizes.blocks)
        spline = {"num_bins": sizes.bins, "tails": "linear", "tail_bound": sizes.bound}
        if flow == "nsf-ar":
            return MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features, sizes.hidden, num_blocks=sizes.blocks, **spline
            )
        mask = torch.tensor([1.0 if _is_transformed(i, index) else -1.0 for i in range(features)])
        if flow == "realnvp":
            return AffineCouplingTransform(mask, net)
        return PiecewiseRationalQuadraticCouplingTransform(mask, net, **spline)

    def between(index: int) -> list[Transform]:
        if plain:
            return [ReversePermutation(features)] if index and flow not in _COUPLINGS else []
        if flow == "realnvp":
            return [ActNorm(features)]
        if flow == "maf":
            return [*([ReversePermutation(features)] if index else []), ActNorm(features)]
        if not index:
            return []
        reorder = flow == "nsf-ar" or (index % 2 == 0 and features > 2)
        return [*([RandomPermutation(features)] if reorder else []), LULinear(features, identity_init=True)]

    members = [member for i in range(sizes.layers) for member in (*between(i), layer(i))]
    made = Flow(CompositeTransform(members), StandardNormal([features]))
    return Rival(library, made, made.log_prob, made.sample, fused=library == "nflows-fused")


def _zuko(library: str, flow: str, features: int, sizes: Sizes) -> Rival:
    import zuko

    mlp = library == "zuko-mlp"
    if flow == "realnvp":
        # Its coupling takes only a plain MLP: with as many linear layers as two residual blocks.
        hidden = [sizes.hidden] * (3 if mlp else 2 * sizes.blocks + 1)
        made = zuko.flows.RealNVP(features, transforms=sizes.layers, hidden_features=hidden)
    else:
        net = {"hidden_features": [sizes.hidden] * (3 if mlp else sizes.blocks), "residual": not mlp}
        if flow == "maf":
            made = zuko.flows.MAF(features, transforms=sizes.layers, **net)
        else:
            passes = 2 if flow == "nsf-c" else None
            made = zuko.flows.NSF(features, transforms=sizes.layers, bins=sizes.bins, passes=passes, **net)
    return Rival(library, made, lambda x: made().log_prob(x), lambda n: made().sample((n,)))


def _normflows(library: str, flow: str, features: int, sizes: Sizes) -> Rival:
    import normflows as nf

    first = (features + 1) // 2

    def layer(index: int) -> list[nn.Module]:
        if flow == "realnvp":
            net = nf.nets.ResidualNet(
                first, 2 * (features - first), hidden_features=sizes.hidden, num_blocks=sizes.blocks
            )
            # "sigmoid" is the bounded scale of nflows; the default, exp, overflows in sampling.
            coupling = nf.flows.AffineCouplingBlock(net, scale_map="sigmoid")
            return [coupling, nf.flows.Permute(features, mode="swap"), nf.flows.ActNorm(features)]
        if flow == "maf":
            masked = nf.flows.MaskedAffineAutoregressive(features, sizes.hidden, num_blocks=sizes.blocks)
            return [nf.flows.base.Reverse(masked), nf.flows.Permute(features), nf.flows.ActNorm(features)]
        options = {"num_bins": sizes.bins, "tail_bound": sizes.bound}
        between = [nf.flows.LULinearPermute(features)] if index else []
        if flow == "nsf-ar":
            spline = nf.flows.AutoregressiveRationalQuadraticSpline
            return [spline(features, sizes.blocks, sizes.hidden, **options), *between]
        coupling = nf.flows.CoupledRationalQuadraticSpline
        return [coupling(features, sizes.blocks, sizes.hidden, reverse_mask=index % 2 == 1, **options), *between]

    members = [member for i in reversed(range(sizes.layers)) for member in layer(i)]
    made = nf.NormalizingFlow(nf.distributions.DiagGaussian(features), members)
    return Rival(library, made, made.log_prob, lambda n: made.sample(n)[0])


def _torchflows(library: str, flow: str, features: int, sizes: Sizes) -> Rival:
    from torchflows.bijections.finite.autoregressive import architectures
    from torchflows.bijections.finite.autoregressive.conditioning.transforms import ResidualFeedForward
    from torchflows.flows import Flow

    kind = {
        "realnvp": architectures.RealNVP,
        "maf": architectures.MAF,
        "nsf-c": architectures.CouplingRQNSF,
        "nsf-ar": architectures.MaskedAutoregressiveRQNSF,
    }[flow]
    options: dict[str, object] = {}
    if flow in _COUPLINGS:
        options["conditioner_transform_class"] = ResidualFeedForward
        options["conditioner_kwargs"] = {"n_hidden": sizes.hidden, "n_layers": sizes.blocks + 2}
    else:
        options["conditioner_kwargs"] = {"n_hidden": sizes.hidden, "n_layers": 2 * sizes.blocks + 2}
    if flow in _SPLINES:
        options["transformer_kwargs"] = {"n_bins": sizes.bins, "boundary": sizes.bound}
    made = Flow(kind(features, n_layers=sizes.layers, **options))
    return Rival(library, made, made.log_prob, lambda n: made.sample(n, no_grad=True))
