"""Rows in memory as tensors for a module, and its state before the first step."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pushforward.common.errors import ConfigError, DataError
from pushforward.common.text import listed
from pushforward.common.whole_number import MAX_SEED, whole_number
from pushforward.datasets.tables.files.plain_reader import PlainReader
from pushforward.datasets.tables.memory.objects import ObjectTable, as_array, tensor_obstacle
from pushforward.datasets.tables.read import check_has, read_columns
from pushforward.datasets.tables.weights import scale_weights
from pushforward.flows import Flow, Mixture
from pushforward.flows.checks import ANY_CONTEXT
from pushforward.flows.random_state import RandomState
from pushforward.train.objectives.likelihood import RowTensors, log_prob_terms
from pushforward.train.options import TrainOptions
from pushforward.train.state import State, start

_HELD_OUT = 0.1
_INITIAL_ROWS = 20_000
_WHERE = "Trainer.fit"


class Rows(NamedTuple):
    """The rows of a part ``(n, D)``, their context ``(n, C)`` and weights ``(n,)`` as a user gave them, or None."""

    x: Any
    given: Any = None
    weight: Any = None


def row_tensors(flow: nn.Module, train: Rows, validation: Rows, *, seed: int = 0) -> tuple[RowTensors, RowTensors]:
    """Return training and validation rows for a module; without validation rows, a tenth is held out.

    Raises:
        ConfigError: If this is not a module with trainable parameters.
        DataError: If rows, context or weights cannot be used.
        ValueError: If the seed is not a whole number of at least 0.
    """
    seed = whole_number(f"{_WHERE}: seed", seed, 0, MAX_SEED)
    like = _parameter(flow)
    x, names = _matrix("x", train.x, like)
    context, given_names = (None, ()) if train.given is None else _matrix("given", train.given, like, rows=len(x))
    weights = None if train.weight is None else _weights("weight", train.weight, like, len(x))
    _check_columns(flow, x, context)
    if validation.x is None:
        for name, value in (("given_validation", validation.given), ("weight_validation", validation.weight)):
            if value is not None:
                raise DataError(f"{_WHERE}: x_validation: expected it beside {name}; got none")
        return _split(RowTensors(x, context, weights=weights), seed)
    _check_pairs(train, validation)
    held, _ = _matrix("x_validation", validation.x, like, names=names, columns=x.shape[1])
    held_context = held_weights = None
    if context is not None:
        held_context, _ = _matrix(
            "given_validation", validation.given, like, names=given_names, columns=context.shape[1], rows=len(held)
        )
    if weights is not None:
        held_weights = _weights("weight_validation", validation.weight, like, len(held))
    return RowTensors(x, context, weights=weights), RowTensors(held, held_context, weights=held_weights)


def start_on_rows(flow: nn.Module, train: RowTensors, options: TrainOptions, seed: int) -> State:
    """Make the state of a module; layers that initialise themselves from data do so from the training rows."""
    random = RandomState(seed, train.x.device)
    context = None if train.context is None else train.context[:_INITIAL_ROWS]
    with random.active(), torch.no_grad():
        log_prob_terms(flow.train(), train.x[:_INITIAL_ROWS], context)
    return start(flow, options, random=random)


def _parameter(flow: nn.Module) -> Tensor:
    """The first trainable parameter of a module with densities, which says where rows go."""
    if not isinstance(flow, nn.Module) or not hasattr(flow, "log_prob"):
        raise ConfigError(
            f"{_WHERE}: flow: expected a module with log_prob(x) or log_prob(x, context); got {_kind(flow)}"
        )
    parameter = next((p for p in flow.parameters() if p.requires_grad), None)
    if parameter is None:
        raise ConfigError(f"{_WHERE}: flow: expected parameters to train; got a {_kind(flow)} without any")
    if parameter.is_meta:
        raise ConfigError(f"{_WHERE}: flow: expected parameters with values; got some on the device meta")
    if parameter.is_inference():
        raise ConfigError(f"{_WHERE}: flow: expected parameters outside of torch.inference_mode; got some made in it")
    return parameter


def _check_arguments(flow: nn.Module, has_context: bool) -> None:
    """Raise unless ``log_prob`` of a module takes rows, and context if there is one."""
    try:
        inspect.signature(flow.log_prob).bind(*([None] * (1 + has_context)))  # type: ignore[arg-type]
    except TypeError as error:
        given = "given: expected none" if has_context else "given: expected context rows"
        raise ConfigError(f"{_WHERE}: {given}, by log_prob of {_kind(flow)}: {error}") from None
    except ValueError:  # a function in C has no signature
        return


def _check_columns(flow: nn.Module, x: Tensor, context: Tensor | None) -> None:
    """Compare the numbers of columns with those of a flow; only another module itself knows what it takes."""
    if not isinstance(flow, Flow | Mixture):
        _check_arguments(flow, context is not None)
        return
    if x.shape[1] != flow.features:
        raise DataError(f"{_WHERE}: x: expected {_columns(flow.features)}, the features of the flow; got {x.shape[1]}")
    if context is None and flow.context:
        raise DataError(f"{_WHERE}: given: expected context rows, as the flow is conditional; got none")
    if context is not None and not flow.context:
        raise DataError(f"{_WHERE}: given: expected none, as the flow is not conditional; got context rows")
    if context is not None and flow.context not in (ANY_CONTEXT, context.shape[1]):
        raise DataError(
            f"{_WHERE}: given: expected {_columns(flow.context)}, the context of the flow; got {context.shape[1]}"
        )


def _check_pairs(train: Rows, validation: Rows) -> None:
    """Raise unless context and weights are there for both parts or for neither."""
    for name in ("given", "weight"):
        there = {
            f"{name}{part}": getattr(rows, name) is not None
            for part, rows in (("", train), ("_validation", validation))
        }
        if len(set(there.values())) == 2:
            missing, present = sorted(there, key=there.__getitem__)
            raise DataError(f"{_WHERE}: {missing}: expected it beside {present}; got none")


def _split(rows: RowTensors, seed: int) -> tuple[RowTensors, RowTensors]:
    """Hold a random tenth of rows out for validation."""
    n = len(rows)
    if n < 2:
        raise DataError(f"{_WHERE}: x: expected at least 2 rows, to hold some out for validation; got {n}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    held_out, kept = order.tensor_split([max(1, round(_HELD_OUT * n))])
    parts = []
    for name, part in (("training", kept), ("validation", held_out)):
        at = part.to(rows.x.device)
        weights = None if rows.weights is None else rows.weights[at]
        if weights is not None and not bool(weights.any()):
            raise DataError(
                f"{_WHERE}: weight: expected one above 0 among the {name} rows; got only 0; give x_validation"
            )
        context = None if rows.context is None else rows.context[at]
        parts.append(RowTensors(rows.x[at], context, weights=weights, numbers=part.numpy()))
    return parts[0], parts[1]


def _matrix(
    name: str, values: Any, like: Tensor, *, names: Sequence[str] = (), columns: int = 0, rows: int = 0
) -> tuple[Tensor, tuple[str, ...]]:
    """Return finite rows ``(n, D)`` with the dtype and the device of a parameter, and the names of their columns.

    Args:
        name: The argument.
        values: Its value.
        like: The parameter.
        names: Names of the columns, which are found by them if they have names here, too.
        columns: Number of columns; 0 for any.
        rows: Number of rows; 0 for any.
    """
    where = f"{_WHERE}: {name}"
    given, found = _numbers(where, values, names)
    if given.dim() != 2:
        raise DataError(f"{where}: expected rows of the shape (n, columns); got the shape {tuple(given.shape)}")
    if 0 in given.shape:
        raise DataError(f"{where}: expected rows and columns; got the shape {tuple(given.shape)}")
    if columns and given.shape[1] != columns:
        raise DataError(f"{where}: expected {_columns(columns)}, as for training; got {given.shape[1]}")
    if rows and len(given) != rows:
        raise DataError(f"{where}: expected {rows} rows; got {len(given)}")
    return _finite(where, name, given, given.to(like.device, like.dtype)), found


def _weights(name: str, values: Any, like: Tensor, rows: int) -> Tensor:
    """Return weights ``(n,)`` with the dtype and the device of a parameter."""
    where = f"{_WHERE}: {name}"
    given, _ = _numbers(where, values, ())
    if given.dim() == 2 and given.shape[1] == 1:  # a column of a frame
        given = given[:, 0]
    if given.shape != (rows,):
        raise DataError(f"{where}: expected {rows} weights; got the shape {tuple(given.shape)}")
    weights = _finite(where, name, given, given.double().cpu())
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        least, most = float(weights.min()), float(weights.max())
        raise DataError(f"{where}: expected weights of at least 0, not all 0; got {least:g} to {most:g}")
    return torch.from_numpy(scale_weights(weights.numpy())).to(like.device, like.dtype)


def _finite(where: str, name: str, given: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor of the given numbers in another dtype, in which they must be finite, too."""
    bad = (~tensor.isfinite()).nonzero()
    if len(bad):
        place = bad[0].tolist()
        value = given[tuple(place)]
        overflow = f", which is infinite in {tensor.dtype}" if bool(value.isfinite()) else ""
        raise DataError(f"{where}: expected finite numbers; got {value:g} in {name}{place}{overflow}")
    return tensor


def _numbers(where: str, values: Any, names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return real numbers of any kind as a tensor, and the names of their columns; empty if they have none."""
    if isinstance(values, list | tuple):
        values = as_array(values, where)
    if isinstance(values, Tensor) and not tensor_obstacle(values) and not values.is_complex():
        return values.detach(), ()
    if type(values) is np.ndarray and values.dtype.kind in "biuf":  # a subclass may have a mask
        dtype = np.dtype(np.float64) if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(values, dtype, ["C", "W"])), ()
    table = ObjectTable(values, where)
    if table.named and names:
        check_has(where, names, table.names)
        table = table.select(map(table.names.index, names))
    else:
        table = table.select(k for k, column in enumerate(table.names) if column not in table.index)
    content = PlainReader(table).read()
    columns = read_columns(content, content.column_names)
    if columns.obstacles:
        first, *others = columns.obstacles
        more = f"; nor can these be used: {listed([other.column for other in others])}" if others else ""
        raise DataError(f"{where}: column {first.column!r} {first.what}{more}")
    return torch.from_numpy(columns.numbers.matrix), columns.names if table.named else ()


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _kind(value: object) -> str:
    return type(value).__name__
