"""What the kernels compute, in torch's operations.

They define the kernels, and take their place where a kernel cannot be: for second derivatives, in forward mode, and
for batches of weights under ``torch.vmap``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pushforward.flows.bases.made_mog import MixtureConditional
from pushforward.flows.kernels import layers, native
from pushforward.flows.kernels.layers import Layer, Map
from pushforward.flows.networks.incremental import IncrementalPass, LinearWeights
from pushforward.flows.univariate.affine import Affine
from pushforward.flows.univariate.base import Univariate
from pushforward.flows.univariate.rational_quadratic import RationalQuadraticSpline

Formula = Callable[..., tuple[Tensor, Tensor]]


def formula(name: str, text: str, inverse: bool) -> Formula:
    """The function of points and tensors that an operator computes."""
    functions: dict[str, Formula] = {"chain": _chain, "map": _map, "network": _network}
    return functools.partial(functions[name], text, inverse)


def _chain(text: str, inverse: bool, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``(n, D)`` and log-determinants ``(n,)``."""
    steps, first, placed = [], 0, layers.in_places(text, tensors)
    for layer in layers.read(text):
        steps.append((layer, placed[first : first + len(layer.tensors)]))
        first += len(layer.tensors)
    log_det = x.new_zeros(x.shape[:-1])
    for layer, own in reversed(steps) if inverse else steps:
        x, term = _KINDS[layer.kind](layer, layer.inverse != inverse, x, own)
        log_det = log_det + term
    return x, log_det


def _map(text: str, inverse: bool, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(n,)`` and log-derivatives ``(n,)``."""
    (layer,) = layers.read(text)
    return _apply(layer, inverse, x, parameters)


def _network(text: str, inverse: bool, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters ``(n, outputs)``, and an empty tensor."""
    (layer,) = layers.read(text)
    return _evaluate(layer, x, layers.in_places(text, tensors)), x.new_empty(0)


def _normalize(layer: Layer, inverse: bool, x: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    shift, log_scale = tensors
    if inverse:
        return x * torch.exp(log_scale) + shift, log_scale.sum()
    return (x - shift) * torch.exp(-log_scale), -log_scale.sum()


def _linear(layer: Layer, inverse: bool, x: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    lower, upper, log_diagonal, bias = tensors
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    lower, upper = lower.tril(-1) + eye, upper.triu(1) + torch.diag(log_diagonal.exp())
    if not inverse:
        return x @ (lower @ upper).transpose(-1, -2) + bias, log_diagonal.sum()
    y = (x - bias).transpose(-1, -2)
    y = torch.linalg.solve_triangular(lower, y, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(upper, y, upper=True).transpose(-1, -2), -log_diagonal.sum()


def _permute(layer: Layer, inverse: bool, x: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    order = torch.tensor(layer.order, device=x.device)
    return x.index_select(-1, order.argsort() if inverse else order), x.new_zeros(())


def _mapped(layer: Layer, inverse: bool, x: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A coupling or an autoregressive layer."""
    univariate = _univariate(layer.map)
    if inverse and layer.known is not None:
        with native.disabled():
            return _incremental(layer, x, tensors).solve(univariate, x)
    inputs = values = x
    if layer.identity_features is not None:
        inputs, values = x[..., list(layer.identity_features)], x[..., list(layer.transformed_features or ())]
    z, log_derivative = _apply(layer, inverse, values, _evaluate(layer, inputs, tensors))
    if layer.transformed_features is not None:
        z = x.index_copy(-1, torch.tensor(layer.transformed_features, device=x.device), z)
    return z, log_derivative.sum(-1)


_KINDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "network": _mapped,
    "normalize": _normalize,
    "linear": _linear,
    "permute": _permute,
}


def _evaluate(layer: Layer, x: Tensor, tensors: Sequence[Any]) -> Tensor:
    """Parameters ``(n, outputs)`` from the inputs ``(n, inputs)`` of a network."""
    weights, given = _masked_weights(layer, x, tensors), tensors
    h = F.linear(x, weights[0], given[1])
    if given[2] is not None:
        h = h + given[2]
    for b in range(layer.blocks):
        bias, context_term, factors, _, last_bias = given[4 + 6 * b : 9 + 6 * b]
        g = F.linear(F.relu(h), weights[1 + 2 * b], bias)
        g = F.relu(g if context_term is None else g + context_term)
        h = h + F.linear(g if factors is None else g * factors, weights[2 + 2 * b], last_bias)
    return F.linear(F.relu(h), weights[-1], given[-1])


def _apply(layer: Layer, inverse: bool, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    univariate = _univariate(layer.map)
    parameters = parameters.reshape(*values.shape, univariate.size)
    with native.disabled():
        return (univariate.inverse if inverse else univariate.forward)(values, parameters)


@functools.lru_cache
def _univariate(map_: Map | None) -> Univariate:
    assert map_ is not None
    if map_.kind == "affine":
        return Affine(map_.bound)
    if map_.kind == "spline":
        return RationalQuadraticSpline(map_.bins, map_.bound, "learned" if map_.learned else "linear")
    return MixtureConditional(map_.bins, map_.bound)


def _masked_weights(layer: Layer, x: Tensor, tensors: Sequence[Any]) -> list[Tensor]:
    blocks = [w for b in range(layer.blocks) for w in (tensors[3 + 6 * b], tensors[7 + 6 * b])]
    weights = [tensors[0], *blocks, tensors[-2]]
    if layer.known is None:
        return weights
    known = torch.tensor(layer.known)
    inputs, units = torch.arange(1, layer.inputs + 1), torch.arange(layer.hidden)
    degrees = torch.searchsorted(known, units, right=True)
    outputs = inputs.repeat_interleave(layer.size)
    within = degrees[:, None] >= degrees
    masks = [degrees[:, None] >= inputs, *[within] * (2 * layer.blocks), outputs[:, None] > degrees]
    return [w * m.to(device=x.device, dtype=x.dtype) for w, m in zip(weights, masks, strict=True)]


def _incremental(layer: Layer, x: Tensor, tensors: Sequence[Any]) -> IncrementalPass:
    weights, given = _masked_weights(layer, x, tensors), tensors

    def transposed(term: Tensor | None) -> Tensor | None:
        return None if term is None else term.transpose(-1, -2)

    blocks = []
    for b in range(layer.blocks):
        one = LinearWeights(weights[1 + 2 * b], given[4 + 6 * b], transposed(given[5 + 6 * b]))
        blocks.append((one, LinearWeights(weights[2 + 2 * b], given[8 + 6 * b])))
    first = LinearWeights(weights[0], given[1], transposed(given[2]))
    assert layer.known is not None
    return IncrementalPass(layer.known, first, blocks, LinearWeights(weights[-1], given[-1]), x)


def differentiate(
    formula: Any, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of a formula in torch's operations, which can be differentiated again.

    Args:
        formula: A function of the inputs.
        inputs: Its arguments.
        gradients: Gradients with respect to its outputs.
        needed: For each input, whether it needs a gradient.
    """
    apply, values = _of_some(formula, inputs, needed)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        pull: Any = torch.func.vjp(apply, *values)[1]
        found = iter(pull(gradients))
    return [next(found) if one else None for one in needed]


def _of_some(formula: Any, inputs: Sequence[Tensor], chosen: Sequence[bool]) -> tuple[Any, list[Tensor]]:
    """A formula as a function of some of its arguments, and their values."""

    def apply(*values: Tensor) -> Any:
        given = iter(values)
        return formula(*[next(given) if one else t for one, t in zip(chosen, inputs, strict=True)])

    return apply, [t for one, t in zip(chosen, inputs, strict=True) if one]


def tangents(formula: Any, inputs: tuple[Tensor, ...], directions: Sequence[Tensor | None]) -> Any:
    """Tangents of a formula's outputs: a vector-Jacobian product is linear, and this is its own transpose."""
    apply, values = _of_some(formula, inputs, [one is not None for one in directions])
    outputs, pull = torch.func.vjp(apply, *values)[:2]
    push: Any = torch.func.vjp(pull, tuple(torch.zeros_like(o) for o in outputs))[1]
    return push(tuple(one for one in directions if one is not None))[0]
