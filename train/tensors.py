"""Rows in memory as tensors for a module, and its state before the first step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pushforward.flows.random_state import RandomState
from pushforward.train.objectives.likelihood import RowTensors, log_prob_terms
from pushforward.train.options import TrainOptions
from pushforward.train.state import State, start

_HELD_OUT = 0.1
_INITIAL_ROWS = 20_000


def row_tensors(
    flow: nn.Module,
    x: Any,
    x_validation: Any = None,
    *,
    given: Any = None,
    given_validation: Any = None,
    weight: Any = None,
    seed: int = 0,
) -> tuple[RowTensors, RowTensors]:
    """Return training and validation rows for a module; arguments and errors as those of ``Trainer.fit``."""
    parameter = next(flow.parameters())
    rows = _rows("x", x, parameter)
    context = None if given is None else _rows("given", given, parameter, len(rows))
    weights = None if weight is None else _weights(weight, rows)
    if x_validation is None:
        if given_validation is not None:
            raise ValueError("Trainer.fit: expected x_validation with given_validation; got none")
        if len(rows) < 2:
            raise ValueError(f"Trainer.fit: expected at least 2 rows to hold some out; got {len(rows)}")
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))).to(rows.device)
        held_out, kept = order.tensor_split([max(1, round(_HELD_OUT * len(rows)))])
        train, validation = (
            RowTensors(
                rows[part],
                None if context is None else context[part],
                weights=None if weights is None else weights[part],
            )
            for part in (kept, held_out)
        )
    else:
        train = RowTensors(rows, context, weights=weights)
        held_rows = _rows("x_validation", x_validation, parameter)
        if (given is None) != (given_validation is None):
            raise ValueError("Trainer.fit: expected context for training and validation rows alike")
        held = None if given is None else _rows("given_validation", given_validation, parameter, len(held_rows))
        validation = RowTensors(held_rows, held)
    return train, validation


def start_on_rows(flow: nn.Module, train: RowTensors, options: TrainOptions, seed: int) -> State:
    """Make the state of a module; layers that initialise themselves from data do so from the training rows."""
    random = RandomState(seed, train.x.device)
    context = None if train.context is None else train.context[:_INITIAL_ROWS]
    with random.active(), torch.no_grad():
        log_prob_terms(flow.train(), train.x[:_INITIAL_ROWS], context)
    return start(flow, options, random=random)


def _rows(name: str, values: Any, like: Tensor, rows: int | None = None) -> Tensor:
    """Return finite rows ``(n, D)`` with the dtype and the device of a parameter."""
    tensor = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values)
    if tensor.dim() != 2 or tensor.is_complex():
        raise ValueError(
            f"Trainer.fit: expected {name} of shape (n, features), real numbers; got {tuple(tensor.shape)}"
        )
    if rows is not None and len(tensor) != rows:
        raise ValueError(f"Trainer.fit: expected {name} of {rows} rows; got {len(tensor)}")
    bad = (~tensor.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(f"Trainer.fit: expected finite numbers; got {tensor[row, column]} in {name}[{row}, {column}]")
    return tensor.to(like.device, like.dtype)


def _weights(weight: Any, rows: Tensor) -> Tensor:
    values = torch.as_tensor(weight, dtype=rows.dtype, device=rows.device)
    if values.shape != (len(rows),) or not bool((values.isfinite() & (values >= 0)).all()) or not values.sum() > 0:
        raise ValueError(
            f"Trainer.fit: expected {len(rows)} weights, finite and at least 0, not all 0; got {tuple(values.shape)}"
        )
    return values
