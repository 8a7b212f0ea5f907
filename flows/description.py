"""A model as JSON values: the registered name of each part and the arguments that rebuild it."""

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pushforward.common.registry import UnknownNameError
from pushforward.flows.parts import PARTS
from pushforward.flows.state import weights_of
from pushforward.flows.torch_modules import POSITIONAL, TORCH_MODULES, torch_config
from pushforward.flows.univariate.base import Univariate

_SIZES = frozenset(
    {"features", "context", "inputs", "outputs", "outputs_per_feature", "hidden", "bins", "components", "rank"}
    | {"heads", "points", "in_features", "out_features", "num_features", "normalized_shape"}
)
"""Arguments that some dimension of the weights is at least as large as."""

_SMALL_SIZE, _FEW_BLOCKS, _FEW_NUMBERS = 4_096, 100, 20_000_000
"""Sizes, numbers of blocks, and numbers in all tensors that are quickly made, whatever the weights."""

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError, MemoryError)
"""What constructors raise for arguments of a wrong kind."""


class DescriptionError(ValueError):
    """A description from which no model can be built."""


def describe(value: Any) -> Any:
    """Turn a model into JSON values: each part becomes its registered name and its ``config``.

    Raises:
        ValueError: If a part has no ``config`` or no registered name.
    """
    if isinstance(value, nn.Module | Univariate):
        kind, name = type(value).__name__, PARTS.name_of(type(value))
        advice = "give it a config() method and a name in saved files by @register_part"
        try:
            if isinstance(value, nn.Module) and name in TORCH_MODULES:
                arguments: dict[str, Any] = torch_config(value)
            else:
                arguments = value.config()  # type: ignore[operator]  # mypy: may be a Module
        except (AttributeError, NotImplementedError) as error:
            raise ValueError(f"save: cannot describe {kind}; {advice}") from error
        if name is None:
            raise ValueError(f"save: {kind} has no name in saved files; give it one with @register_part")
        return {"part": name} | {key: describe(argument) for key, argument in arguments.items()}
    if isinstance(value, dict):
        return {name: describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value


def build(description: Any, weights: Mapping[str, Tensor]) -> Any:
    """Build the model of a description, with initial weights in place of the given ones.

    A description may be edited or damaged. So its sizes are compared with those of the weights, and what constructors
    create is counted: a wrong description costs neither time nor memory.

    Raises:
        DescriptionError: If a part is unknown, its arguments do not fit, or its sizes are beyond those of the weights.
    """
    _check_numbers(description, weights)
    with _Budget(_FEW_NUMBERS + 8 * sum(tensor.numel() for tensor in weights.values())):
        return _build(description)


def _build(description: Any) -> Any:
    if isinstance(description, list):
        return [_build(item) for item in description]
    if not isinstance(description, dict):
        return description
    arguments = {name: _build(item) for name, item in description.items()}
    if "part" not in arguments:
        return arguments
    name = arguments.pop("part")
    try:
        kind = PARTS[str(name)]
    except UnknownNameError as error:
        raise DescriptionError(f"{error}; import the module that registers it first (--plugin MODULE)") from None
    try:
        return kind(*arguments.pop(POSITIONAL, ()), **arguments)
    except RecursionError:
        raise
    except _FAILURES as error:
        raise DescriptionError(f"cannot rebuild {name}: {_one_line(error)}") from error


class _Budget(TorchFunctionMode):
    """Within this block, torch creates at most so many numbers.

    torch's device "meta" would do it as well, but importing what it needs takes seconds.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self._left = numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            size = (kwargs or {}).get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
            self._left -= math.prod(n for n in size if isinstance(n, int))
            if self._left < 0:
                raise DescriptionError("its sizes are beyond those of the weights")
        return func(*args, **(kwargs or {}))


def _check_numbers(description: Any, weights: Mapping[str, Tensor]) -> None:
    """Raise a ``DescriptionError`` for numbers that cannot be, before a constructor makes lists of such a length."""
    largest = max([_SMALL_SIZE, *(size for tensor in weights.values() for size in tensor.shape)])
    most = {"blocks": max(_FEW_BLOCKS, len(weights))} | dict.fromkeys(_SIZES, largest)
    for key, value in _entries(description):
        if not isinstance(value, int | float):
            continue
        if not abs(value) <= sys.float_info.max:
            raise DescriptionError(f"expected finite numbers; got an infinite or huge {key}")
        if value > most.get(key, value):
            raise DescriptionError(f"expected {key} of at most {most[key]}, from the size of the weights; got {value}")


def check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a ``DescriptionError`` unless weights have the names and shapes of those of a model."""
    expected = weights_of(model)
    for name, like in expected.items():
        if name not in weights:
            raise DescriptionError(f"{name} is missing")
        tensor = weights[name]
        if tensor.shape != like.shape:
            raise DescriptionError(f"expected {name} of shape {tuple(like.shape)}; got {tuple(tensor.shape)}")
        if tensor.is_floating_point() != like.is_floating_point():
            raise DescriptionError(f"expected {name} of a dtype such as {like.dtype}; got {tensor.dtype}")
    for name in weights:
        if name not in expected:
            raise DescriptionError(f"{name} is not one of its weights")


def _entries(description: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values inside a description, each with its key; those of a list have the key of the list."""
    if isinstance(description, dict):
        for name, value in description.items():
            yield from _entries(value, name)
    elif isinstance(description, list):
        for value in description:
            yield from _entries(value, key)
    else:
        yield key, description


def _one_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
