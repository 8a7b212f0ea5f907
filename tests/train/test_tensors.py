"""Rows that ``Trainer.fit`` takes, and one line about what it does not take: which argument, where, and why."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

from pushforward.common.errors import ConfigError, DataError
from pushforward.flows import Flow, build
from pushforward.train import Trainer

N = 60
ROWS = np.random.default_rng(0).integers(-20, 20, size=(N, 2)).astype(np.float32) / 8  # exact in every dtype below
CONTEXT = ROWS[:, :1] ** 2


def flow(context: int = 0) -> Flow:
    torch.manual_seed(0)
    return build("maf", 2, context, layers=1, hidden=4)


def in_inference_mode(make: Callable[[], Flow]) -> Flow:
    with torch.inference_mode():
        return make()


def fitted(*rows: Any, model: nn.Module | None = None, **more: Any) -> Tensor:
    """The weights after three steps."""
    model = flow(0 if more.get("given") is None else 1) if model is None else model
    module = Trainer(steps=3).fit(model, *rows, **more)
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    "kind",
    [
        lambda rows: rows.astype(np.float64),
        lambda rows: rows.astype(np.float16),
        lambda rows: rows.astype(np.longdouble),
        lambda rows: rows.astype(">f4"),
        lambda rows: rows[::-1][::-1],
        lambda rows: rows[::-1].copy()[::-1],
        lambda rows: np.asfortranarray(rows),
        lambda rows: rows.astype(object),
        lambda rows: rows.tolist(),
        lambda rows: torch.from_numpy(rows).double().requires_grad_(),
        lambda rows: pd.DataFrame(rows, columns=["a", "b"]),
        lambda rows: pl.DataFrame(rows, schema=["a", "b"]),
        lambda rows: pa.table({"a": rows[:, 0], "b": rows[:, 1]}),
        lambda rows: {"a": rows[:, 0], "b": rows[:, 1]},
    ],
)
def test_rows_of_every_kind_give_the_same_fit(kind: Callable[[Any], Any]) -> None:
    assert torch.equal(fitted(kind(ROWS), kind(ROWS[:20])), fitted(ROWS, ROWS[:20]))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, np.uint64])
def test_whole_numbers_and_truth_values_are_cast(dtype: Any) -> None:
    rows = (8 * ROWS).astype(np.int64).clip(0, 1).astype(dtype)
    assert torch.equal(fitted(rows), fitted(rows.astype(np.float32)))


def test_read_only_rows_are_taken_without_a_warning_and_stay_as_they_are() -> None:
    rows = ROWS.copy()
    rows.flags.writeable = False
    assert torch.equal(fitted(rows), fitted(ROWS))


def test_validation_frames_are_read_by_their_names() -> None:
    frame = pd.DataFrame(ROWS, columns=["a", "b"])
    other = frame[:20][["b", "a"]].assign(c="text")
    assert torch.equal(fitted(frame, other), fitted(ROWS, ROWS[:20]))
    with pytest.raises(DataError, match=r"^Trainer\.fit: x_validation: lacks the columns b; it has a, c$"):
        fitted(frame, frame.rename(columns={"b": "c"}))


def test_weights_of_both_parts_count() -> None:
    weight = np.arange(N)
    plain, weighted = fitted(ROWS, ROWS), fitted(ROWS, ROWS, weight=weight, weight_validation=weight)
    assert not torch.equal(plain, weighted)
    assert torch.equal(weighted, fitted(ROWS, ROWS, weight=pd.Series(weight), weight_validation=weight.tolist()))
    assert fitted(ROWS, weight=weight).isfinite().all()
    # In float32 some of these would be 0 or infinite; only their ratios count.
    for scale in (2.0**-1000, 2.0**-140, 2.0**140):
        assert torch.equal(weighted, fitted(ROWS, ROWS, weight=weight * scale, weight_validation=weight * scale))


BAD: dict[str, Any] = {
    "x: column 'x1' holds text ('a' in row 1); nor can these be used: x2": np.array([["a", "b"]] * N),
    "x: column 'a' holds text ('y' in row 1)": pd.DataFrame({"a": ["y"] * N, "b": 1.0}),
    "x: column 'a' has 1 missing value (in row 3)": pd.DataFrame(ROWS, columns=["a", "b"]).mask(
        pd.DataFrame({"a": np.arange(N) == 2, "b": False})
    ),
    "x: expected real numbers; got complex64": ROWS + 1j,
    "x: expected real numbers; got complex128": torch.complex(*torch.ones(2, N, 2).double()),
    "x: expected dense rows; got a sparse csr_matrix; call .toarray() first": scipy.sparse.csr_matrix(ROWS),
    "x: expected dense rows; got a sparse tensor; call .to_dense() first": torch.from_numpy(ROWS).to_sparse(),
    "x: expected rows of the shape (n, columns); got the shape (1, 60, 2)": ROWS[None],
    "x: expected rows of the shape (n, columns); got the shape (60,)": ROWS[:, 0],
    "x: expected rows of equal lengths; got 2 cells in row 1 and 1 in row 2": [[1, 2], [3]],
    "x: expected rows and columns; got the shape (0, 2)": ROWS[:0],
    "x: expected rows and columns; got the shape (60, 0)": ROWS[:, :0],
    "x: expected at least 2 rows, to hold some out for validation; got 1": ROWS[:1],
    "x: expected 2 columns, the features of the flow; got 1": ROWS[:, :1],
    "x: expected finite numbers; got nan in x[0, 0]": ROWS * np.nan,
    "x: expected finite numbers; got 1e+300 in x[0, 0], which is infinite in torch.float32": np.full((N, 2), 1e300),
}


@pytest.mark.parametrize("message", BAD)
def test_rows_that_cannot_be_used(message: str) -> None:
    with pytest.raises(DataError) as refused:
        fitted(BAD[message])
    assert str(refused.value) == f"Trainer.fit: {message}"


CONFLICTS: list[tuple[str, dict[str, Any]]] = [
    ("x_validation: expected rows and columns; got the shape (0, 2)", {"x_validation": ROWS[:0]}),
    ("x_validation: expected 2 columns, as for training; got 1", {"x_validation": CONTEXT}),
    ("x_validation: expected finite numbers; got inf in x_validation[0, 0]", {"x_validation": ROWS + np.inf}),
    ("x_validation: expected it beside given_validation; got none", {"given": CONTEXT, "given_validation": CONTEXT}),
    ("x_validation: expected it beside weight_validation; got none", {"weight_validation": np.ones(N)}),
    ("given: expected context rows, as the flow is conditional; got none", {"model": flow(1)}),
    ("given: expected none, as the flow is not conditional; got context rows", {"given": CONTEXT, "model": flow()}),
    ("given: expected 1 column, the context of the flow; got 2", {"given": ROWS}),
    ("given: expected 60 rows; got 5", {"given": CONTEXT[:5]}),
    ("given: expected finite numbers; got nan in given[0, 0]", {"given": CONTEXT * np.nan}),
    ("given_validation: expected it beside given; got none", {"given": CONTEXT, "x_validation": ROWS}),
    (
        "given_validation: expected 20 rows; got 5",
        {"given": CONTEXT, "x_validation": ROWS[:20], "given_validation": CONTEXT[:5]},
    ),
    (
        "given_validation: expected 1 column, as for training; got 2",
        {"given": CONTEXT, "x_validation": ROWS, "given_validation": ROWS},
    ),
    ("weight: expected 60 weights; got the shape (5,)", {"weight": np.ones(5)}),
    ("weight: expected weights of at least 0, not all 0; got -1 to 1", {"weight": np.linspace(-1, 1, N)}),
    ("weight: expected weights of at least 0, not all 0; got 0 to 0", {"weight": np.zeros(N)}),
    ("weight: expected finite numbers; got nan in weight[0]", {"weight": np.full(N, np.nan)}),
    ("weight: column 'x1' holds text ('a' in row 1)", {"weight": ["a"] * N}),
    (
        "weight: expected one above 0 among the validation rows; got only 0; give x_validation",
        {"weight": np.eye(N)[0]},
    ),
    ("weight_validation: expected it beside weight; got none", {"weight": np.ones(N), "x_validation": ROWS}),
    ("weight: expected it beside weight_validation; got none", {"weight_validation": np.ones(N), "x_validation": ROWS}),
    (
        "weight_validation: expected weights of at least 0, not all 0; got 0 to 0",
        {"weight": np.ones(N), "x_validation": ROWS, "weight_validation": np.zeros(N)},
    ),
]


@pytest.mark.parametrize(("message", "more"), CONFLICTS, ids=[message for message, _ in CONFLICTS])
def test_arguments_that_do_not_go_together(message: str, more: dict[str, Any]) -> None:
    with pytest.raises(DataError) as refused:
        fitted(ROWS, **more)
    assert str(refused.value) == f"Trainer.fit: {message}"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("maf", "a module with log_prob(x) or log_prob(x, context); got str"),
        (nn.Linear(2, 1), "a module with log_prob(x) or log_prob(x, context); got Linear"),
        (flow().requires_grad_(False), "parameters to train; got a Flow without any"),
        (flow().to("meta"), "parameters with values; got some on the device meta"),
        (in_inference_mode(flow), "parameters outside of torch.inference_mode; got some made in it"),
    ],
)
def test_modules_that_cannot_be_fitted(model: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Trainer(steps=3).fit(model, ROWS)
    assert str(refused.value) == f"Trainer.fit: flow: expected {expected}"


class Other(nn.Module):
    """A normal distribution of someone else's, whose ``log_prob`` returns what it should not."""

    def __init__(self, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.mean, self.change = nn.Parameter(torch.zeros(2)), change

    def log_prob(self, x: torch.Tensor) -> Any:
        return self.change(-0.5 * (x - self.mean).square().sum(-1))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda value: value[:, None], r"; got the shape \(\d+, 1\)"),
        (lambda value: value.mean(), r"; got the shape \(\)"),
        (lambda value: value[1:], r"; got the shape \(\d+,\)"),
        (lambda value: None, "; got NoneType"),
        (lambda value: (value,), "; got tuple"),
        (lambda value: value.detach().numpy(), "; got ndarray"),
        (lambda value: value.long(), r"; got one of torch\.int64"),
        (lambda value: value.detach(), " that depend on the parameters; got a tensor without a gradient"),
    ],
)
def test_log_densities_of_another_shape_or_kind_are_refused(change: Callable[[torch.Tensor], Any], got: str) -> None:
    """Weights ``(n,)`` would broadcast against ``(n, 1)`` without an error, and be ignored."""
    with pytest.raises(
        ConfigError, match=rf"^flow: log_prob: expected a tensor of (\d+) log-densities for \1 rows{got}$"
    ):
        Trainer(steps=3).fit(Other(change), ROWS, weight=np.ones(len(ROWS)))


def test_context_for_a_module_without_and_none_for_one_with() -> None:
    class WithContext(Other):
        def log_prob(self, x: torch.Tensor, context: torch.Tensor) -> Any:  # type: ignore[override]
            return super().log_prob(x)

    with pytest.raises(ConfigError, match=r"^Trainer\.fit: given: expected none, by log_prob of Other: too many"):
        Trainer(steps=3).fit(Other(lambda value: value), ROWS, given=ROWS)
    with pytest.raises(ConfigError, match=r"^Trainer\.fit: given: expected context rows, by log_prob of WithContext"):
        Trainer(steps=3).fit(WithContext(lambda value: value), ROWS)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "a", 2**63])
def test_seeds_that_torch_does_not_take(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^Trainer\.fit: seed: expected a whole number from 0 to \d+; got "):
        fitted(ROWS, seed=seed)
