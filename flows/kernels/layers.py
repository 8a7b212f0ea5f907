"""Descriptions of layers for the kernels: a text that an operator takes, and the structures in C made of it.

A chain of layers is one text, such as ``normalize 0;network 0 1 128 2 1 2|affine 0 3.0 0|0|1|``, because an argument of
an operator must be a tensor, a number or a text. Programs that were exported contain it.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("network", "normalize", "linear", "permute", "map")
"""Kinds of layers, numbered as in kernels.c: a network with a map or alone, and a map alone, whose tensor are its
parameters."""

MAPS = ("affine", "spline", "mixture")
"""Kinds of maps, numbered as in kernels.c."""

MOST_BLOCKS = 16
"""Largest number of residual blocks, as in kernels.c."""


@dataclass(frozen=True)
class Map:
    """A univariate map that the kernels know.

    Args:
        kind: One of ``MAPS``.
        bins: Bins of a spline, or components of a mixture.
        bound: Bound of the interval, of the log-scale, or smallest scale of a component.
        learned: Whether the outermost slopes of a spline are parameters.
    """

    kind: str
    bins: int = 0
    bound: float = 0.0
    learned: bool = False

    def text(self) -> str:
        """This map in the text of a layer."""
        return f"{self.kind} {self.bins} {float(self.bound)!r} {int(self.learned)}"

    @staticmethod
    def read(text: str) -> "Map":
        """Read ``text()``."""
        kind, bins, bound, learned = text.split(" ")
        return Map(kind, int(bins), float(bound), learned == "1")


@dataclass(frozen=True)
class Layer:
    """A layer of a chain.

    Args:
        kind: One of ``KINDS``.
        inverse: Whether the inverse of the layer is what a chain applies forwards.
        inputs: Inputs of the network.
        hidden: Hidden units of the network.
        blocks: Residual blocks of the network.
        values: Number of features that are mapped.
        size: Number of parameters of each map.
        map: The map; None for a network alone.
        identity_features: In a coupling, the features that the network reads and that are unchanged.
        transformed_features: In a coupling, the features that are mapped.
        known: ``known[d]`` is the number of hidden units that read only the first ``d`` inputs; None without masks.
        order: Order of a permutation.
        has_terms: Whether a context adds a term to the layers of the network.
        has_factors: Whether dropout multiplies its activations by factors.
    """

    kind: str
    inverse: bool = False
    inputs: int = 0
    hidden: int = 0
    blocks: int = 0
    values: int = 0
    size: int = 0
    map: Map | None = None
    identity_features: tuple[int, ...] | None = None
    transformed_features: tuple[int, ...] | None = None
    known: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    has_terms: bool = False
    has_factors: bool = False

    def text(self) -> str:
        """This layer as an argument of an operator."""
        if self.kind == "permute":
            return f"permute {int(self.inverse)}|{_listed(self.order)}"
        if self.kind in ("normalize", "linear"):
            return f"{self.kind} {int(self.inverse)}"
        sizes = f"{self.inputs} {self.hidden} {self.blocks} {self.values} {self.size}"
        parts = (
            f"{self.kind} {int(self.inverse)} {sizes} {int(self.has_terms)} {int(self.has_factors)}",
            "" if self.map is None else self.map.text(),
            _listed(self.identity_features),
            _listed(self.transformed_features),
            _listed(self.known),
        )
        return "|".join(parts)

    @staticmethod
    def read(text: str) -> "Layer":
        """Read ``text()``."""
        head, *parts = text.split("|")
        kind, inverse, *sizes = head.split(" ")
        if kind == "permute":
            return Layer(kind, inverse == "1", order=_numbers(parts[0]))
        if kind in ("normalize", "linear"):
            return Layer(kind, inverse == "1")
        inputs, hidden, blocks, values, size, has_terms, has_factors = (int(number) for number in sizes)
        map_ = Map.read(parts[0]) if parts[0] else None
        identity, transformed, known = (_numbers(part) for part in parts[1:])
        return Layer(
            kind,
            inverse == "1",
            inputs,
            hidden,
            blocks,
            values,
            size,
            map_,
            identity,
            transformed,
            known,
            has_terms=has_terms == 1,
            has_factors=has_factors == 1,
        )

    @property
    def tensors(self) -> tuple[str, ...]:
        """What each of its tensors is: a ``weight`` of any kind, a context ``term`` or dropout ``factors``.

        Those of a network are weight, bias and term of the input layer; for each block weight, bias, term and factors
        of the first layer, and weight and bias of the second; weight and bias of the output layer.
        """
        if self.kind != "network":
            return ("weight",) * {"normalize": 2, "linear": 4, "permute": 0, "map": 1}[self.kind]
        linear = ("weight", "weight")
        return (*linear, "term", *(*linear, "term", "factors", *linear) * self.blocks, *linear)

    def has(self, tensor: str) -> bool:
        """Whether it has tensors of this kind."""
        return tensor == "weight" or (self.has_terms if tensor == "term" else self.has_factors)

    def saved_by_a_point(self, features: int) -> int:
        """How many numbers the kernels save for the backward pass, for each point (``saved_by`` in chain.h)."""
        activations = (1 + 2 * self.blocks) * self.hidden
        if self.kind == "network":
            return activations + (features + self.values * self.size if self.map else 0)
        return {"normalize": features, "linear": 2 * features, "permute": 0}[self.kind]


@functools.lru_cache(maxsize=1024)
def read(text: str) -> tuple[Layer, ...]:
    """The layers of a chain from their texts, joined by semicolons."""
    return tuple(Layer.read(part) for part in text.split(";")) if text else ()


@functools.lru_cache(maxsize=1024)
def tensors_of(text: str) -> tuple[tuple[int, str], ...]:
    """For each tensor of a chain, its place among all that there could be, and what it is."""
    found, place = [], 0
    for layer in read(text):
        for tensor in layer.tensors:
            if layer.has(tensor):
                found.append((place, tensor))
            place += 1
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def places_of(text: str) -> int:
    """How many tensors a chain could have."""
    return sum(len(layer.tensors) for layer in read(text))


def in_places(text: str, tensors: Sequence[Any]) -> list[Any]:
    """The tensors of a chain in their places, None in the others."""
    found: list[Any] = [None] * places_of(text)
    for (place, _), tensor in zip(tensors_of(text), tensors, strict=True):
        found[place] = tensor
    return found


class _Map(ctypes.Structure):
    """``map`` in kernels.c."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("bins", ctypes.c_int64),
        ("bound", ctypes.c_double),
        ("learned", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    """``layer`` in kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "inverse", "first", "inputs", "hidden", "blocks")),
        *((name, ctypes.c_int64) for name in ("values", "size")),
        ("map", _Map),
        *(
            (name, ctypes.POINTER(ctypes.c_int64))
            for name in ("identity_features", "transformed_features", "known", "order", "back")
        ),
    )


@functools.lru_cache(maxsize=1024)
def in_c(text: str) -> "ctypes.Array[_Layer]":
    """The layers of a chain as an array in C, kept because its lists of features are in memory that it owns."""
    layers = read(text)
    array, first = (_Layer * len(layers))(), 0
    for made, layer in zip(array, layers, strict=True):
        made.kind, made.inverse, made.first = KINDS.index(layer.kind), layer.inverse, first
        made.inputs, made.hidden, made.blocks = layer.inputs, layer.hidden, layer.blocks
        made.values, made.size = layer.values, layer.size
        if layer.map is not None:
            made.map = _Map(MAPS.index(layer.map.kind), layer.map.bins, layer.map.bound, layer.map.learned)
        for name in ("identity_features", "transformed_features", "known", "order"):
            numbers = getattr(layer, name)
            if numbers is not None:
                setattr(made, name, _array(numbers))
        if layer.order is not None:
            made.back = _array(sorted(range(len(layer.order)), key=layer.order.__getitem__))
        first += len(layer.tensors)
    return array


def _array(numbers: Any) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _listed(numbers: tuple[int, ...] | None) -> str:
    return "" if numbers is None else ",".join([str(n) for n in numbers]) or "-"


def _numbers(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    return () if text == "-" else tuple(int(n) for n in text.split(","))
