"""Descriptions of modules for the kernels, and their evaluation.

A layer or a network describes itself by ``describe``: the text of an operator, and where the tensors are that it
depends on. A module that somebody has changed (other parts, hooks, a ``forward`` of its own) does not match its
description any more, and its own code runs.
"""

import functools
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pushforward.flows.kernels import native, operators
from pushforward.flows.kernels.layers import Layer

_PLAIN = (Tensor, nn.Parameter)


class Description:
    """What the kernels need to know of one or several layers, in the order in which they are applied forwards.

    Attributes:
        layers: The layers.
        slots: A module and the name of its parameter for each tensor; None for context terms and dropout factors.
        shapes: The shapes of these parameters.
        networks: Networks, which fill the empty slots: the position of the first slot, the network, and whether its
            layer is inverted.
        guard: What must stay as it is for this to be right.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.slots: list[tuple[nn.Module, str] | None] = []
        self.shapes: list[tuple[int, ...] | None] = []
        self.networks: list[tuple[int, Any, bool]] = []
        self.guard = Guard()
        self.text = ""
        self.texts_with_dropout = ["", ""]

    def add(self, module: nn.Module, name: str, *shape: int) -> None:
        """Add a parameter."""
        self.slots.append((module, name))
        self.shapes.append(shape)

    def skip(self, count: int) -> None:
        """Leave slots empty."""
        self.slots += [None] * count
        self.shapes += [None] * count

    def extend(self, other: "Description") -> None:
        """Add the layers of another description."""
        self.networks += [(position + len(self.slots), net, inverse) for position, net, inverse in other.networks]
        self.layers += other.layers
        self.slots += other.slots
        self.shapes += other.shapes
        self.guard.extend(other.guard)

    def of(self, layer: Layer) -> "Description":
        """Describe the layer whose tensors were added; return this."""
        self.layers.append(layer)
        return self

    def finish(self) -> None:
        """Write the text for the operators, after the last layer."""
        self.text = ";".join([layer.text() for layer in self.layers])
        nets = iter([net for _, net, _ in self.networks])
        owners = [next(nets) if layer.kind == "network" else None for layer in self.layers]
        for inverse in (False, True):
            texts = [
                replace(layer, has_factors=net is not None and can_drop(net, inverse != layer.inverse)).text()
                for layer, net in zip(self.layers, owners, strict=True)
            ]
            self.texts_with_dropout[inverse] = ";".join(texts)

    def inverted(self) -> "Description":
        """The description of the inverse of a single layer; changes and returns this."""
        self.layers = [replace(layer, inverse=not layer.inverse) for layer in self.layers]
        self.networks = [(position, net, not inverse) for position, net, inverse in self.networks]
        return self


def can_drop(net: Any, inverse: bool) -> bool:
    """Whether a network drops activations in training: not in the inverse of an autoregressive layer."""
    return bool(net.dropout) and not (inverse and net.known is not None)


class Guard:
    """What is compared at every call: whether somebody has changed the modules of a description.

    The comparison takes about ten microseconds for a flow. A mask that is changed in place is not noticed.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.kinds: list[type] = []
        self.hooks: list[dict[Any, Any]] = []
        self.places: list[tuple[dict[str, Any], str]] = []
        self.expected: list[object] = []
        self.dropouts: list[tuple[Any, Any]] = []

    def module(self, module: nn.Module) -> None:
        """Expect the module's class, no hooks, and no ``forward`` of its own."""
        self.modules.append(module)
        self.kinds.append(type(module))
        self.hooks += [vars(module)[name] for name in _HOOKS]
        self.attribute(module, "forward", None)

    def attribute(self, module: nn.Module, name: str, value: object) -> None:
        """Expect an attribute to be the same object; None if there is none."""
        self.places.append((vars(module), name))
        self.expected.append(value)

    def child(self, module: nn.Module, name: str) -> Any:
        """Expect a submodule to be the same object; return it."""
        found = module._modules.get(name)
        self.places.append((module._modules, name))
        self.expected.append(found)
        return found

    def extend(self, other: "Guard") -> None:
        """Expect what another guard expects."""
        for name in vars(self):
            getattr(self, name).extend(getattr(other, name))

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return (
            not any(self.hooks)
            and not any(_GLOBAL_HOOKS)
            and [*map(type, self.modules)] == self.kinds
            and all([place.get(name) is value for (place, name), value in zip(self.places, self.expected, strict=True)])
            and all([d.p == net.dropout and d.training == net.training for net, d in self.dropouts])
        )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS: list[dict[Any, Any]] = [
    value
    for name, value in vars(nn.modules.module).items()
    if name.startswith("_global_") and name.endswith("_hooks") and isinstance(value, dict)
]


def is_described(kind: type, formulas: tuple[str, ...], by: str = "describe") -> bool:
    """Whether a description belongs to a class: a subclass may have overridden formulas but not the description."""
    return all(_depth(kind, by) <= _depth(kind, name) for name in formulas)


@functools.lru_cache(maxsize=1024)
def _depth(kind: type, name: str) -> int:
    return next((i for i, c in enumerate(kind.__mro__) if name in vars(c)), len(kind.__mro__))


_KEPT: weakref.WeakKeyDictionary[nn.Module, Description] = weakref.WeakKeyDictionary()


def is_usable(points: Tensor) -> bool:
    """Whether the kernels are on and take points of this kind."""
    return points.is_cpu and points.dtype in native.KINDS and native.is_on() and _is_plain(points)


def description_of(module: Any) -> Description | None:
    """Return ``module.describe()``, made when it is first needed and again when the module has changed.

    Returns:
        The description; None if the kernels do not implement the module as it is now.
    """
    if torch.compiler.is_compiling():
        return traced(module, _facts(module))
    found = _KEPT.get(module)
    if found is None or not found.guard.holds():
        found = module.describe()
        if found is None or not found.guard.holds():
            return None
        found.finish()
        _KEPT[module] = found
    return found


Facts = tuple[Any, ...]
"""A description without modules, which a compiler can take as a constant."""


def facts_of(module: nn.Module, found: Description) -> Facts:
    """Return a finished description in terms of the names of submodules."""
    names = {id(member): name for name, member in module.named_modules()}
    slots = tuple(None if slot is None else (names[id(slot[0])], slot[1]) for slot in found.slots)
    networks = tuple((position, names[id(net)], inverse) for position, net, inverse in found.networks)
    return found.text, tuple(found.texts_with_dropout), slots, tuple(found.shapes), networks


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _facts(module: Any) -> Facts | None:
    found: Description | None = module.describe()
    if found is None or not found.guard.holds():
        return None
    found.finish()
    return facts_of(module, found)


def traced(module: nn.Module, facts: Facts | None) -> Description | None:
    """Return the description of a module that is being compiled."""
    if facts is None:
        return None
    found = Description()
    found.text, texts, slots, shapes, networks = facts
    found.texts_with_dropout = list(texts)
    found.slots = [None if slot is None else (module.get_submodule(slot[0]), slot[1]) for slot in slots]
    found.shapes = list(shapes)
    found.networks = [(position, module.get_submodule(name), inverse) for position, name, inverse in networks]
    return found


def evaluate(
    found: Description | None,
    points: Tensor,
    context: Tensor | None = None,
    *,
    name: str = "chain",
    inverse: bool = False,
    score: Tensor | None = None,
) -> tuple[Tensor, ...] | None:
    """Evaluate layers by one call of a kernel.

    The inverse of an autoregressive layer is solved feature by feature; its gradient follows from the implicit function
    theorem, for the cost of one backward pass.

    Args:
        found: The layers; None for layers that are not described.
        points: Points ``(..., features)``.
        context: Context ``(..., context)`` or None.
        name: ``"chain"``, or ``"network"`` for a network alone.
        inverse: Whether to invert the layers.
        score: Score ``(..., features)`` of a density at the points. Dropout is not applied then, because both
            directions use the same activations.

    Returns:
        The mapped points ``(..., features)``, the log-determinants ``(...)``, and the score of the mapped density if a
        score was given. For a network, its outputs ``(..., outputs)``. None if the kernels cannot be used here.
    """
    tensors = None if found is None or not is_usable(points) else _parameters(found, points.dtype)
    if found is None or tensors is None:
        return None
    lead = points.shape[:-1]
    if context is not None and any([net.context for _, net, _ in found.networks]):
        if context.dtype is not points.dtype:
            return None
        lead = torch.broadcast_shapes(lead, context.shape[:-1])
    rows = points.expand(*lead, points.shape[-1]).reshape(-1, points.shape[-1])
    dropping = [net.training for _, net, inverted in found.networks if can_drop(net, inverse != inverted)]
    if any(dropping) and not all(dropping):  # somebody has switched off the dropout of some layers
        return None
    drops = score is None and any(dropping)
    for position, net, inverted in found.networks:
        drops_here = drops and can_drop(net, inverse != inverted)
        if net.context or drops_here:
            with torch.autocast("cpu", enabled=False):
                terms = net.tensors(lead, context, dropout=drops_here)
            for i, term in enumerate(terms):
                if tensors[position + i] is None:
                    tensors[position + i] = term
    text = found.texts_with_dropout[inverse] if drops else found.text
    given = [t for t in tensors if t is not None]
    first, second, saved = operators.evaluate(name, text, rows, given, inverse=inverse, save=score is not None)
    first = first.reshape(*lead, first.shape[-1])
    if name == "network":
        return (first,)
    if score is None:
        return first, second.reshape(lead)
    score = score.detach().expand(*lead, score.shape[-1]).reshape(-1, score.shape[-1])
    mapped = operators.score(text, given, saved, score, inverse=inverse)
    return first, second.reshape(lead), mapped.reshape(*lead, mapped.shape[-1])


def _parameters(found: Description, dtype: torch.dtype) -> list[Tensor | None] | None:
    """The tensor of each slot; None if one is not as described."""
    tensors: list[Any] = [None if slot is None else slot[0]._parameters.get(slot[1]) for slot in found.slots]
    if [None if t is None else t.shape for t in tensors] != found.shapes:
        return None
    if not all([t is None or (t.dtype is dtype and t.is_cpu and _is_plain(t)) for t in tensors]):
        return None
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is none of a subclass, which may see operations in its own way."""
    return torch.compiler.is_compiling() or type(tensor) in _PLAIN
