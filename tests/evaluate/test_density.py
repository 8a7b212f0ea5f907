"""Fitted densities: undefined log-densities are errors, and edited files are refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pushforward.common.errors import TableError
from pushforward.datasets import Column, FrameKind, Schema
from pushforward.evaluate import FittedDensity
from pushforward.evaluate.evaluation import SplitRows, score_split
from pushforward.evaluate.likelihood import UndefinedDensityError
from pushforward.evaluate.scoring import score_parts
from pushforward.flows import Bijection, Chain, Flow, Gaussian, ModelFileError, Uniform, build, load, read_extra, save


class NanAbove(Bijection):
    """The identity, with NaN above 100, as of weights that overflow."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(x > 100.0, torch.nan, x), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(z > 0.0, torch.nan, z), z.new_zeros(z.shape[:-1])


def schema(names: str = "ab", context: str = "") -> Schema:
    def columns(of: str) -> tuple[Column, ...]:
        return tuple(Column(name, "double", 0.0, 1.0, None, None, 9, 0.0) for name in of)

    return Schema(columns(names), columns(context))


def broken_density() -> FittedDensity:
    return FittedDensity(Flow(Gaussian(2), NanAbove(2)), schema(), [0.0, 0.0])


def test_an_undefined_log_density_names_its_rows() -> None:
    density, rows = broken_density(), np.zeros((9, 2))
    rows[[2, 4, 5, 8]] = 1e3
    with pytest.raises(UndefinedDensityError, match=r"no log-density .* for row 3, 5, 6 and 1 more, though") as error:
        density.log_prob(rows)
    assert error.value.exit_code == 4
    rows[[2, 4], 1] = np.nan  # not the model's fault
    with pytest.raises(TableError, match=r"^the rows: column 'b' has 2 missing values \(22 %, first in row 3\); the"):
        density.log_prob(rows)


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.table])
def test_columns_of_a_frame_are_found_by_name(kind: Callable[[dict[str, Any]], Any]) -> None:
    torch.manual_seed(0)
    density = FittedDensity(build("maf", 2, context=1, hidden=8), schema(context="c"), [0.0, 0.0])
    a, b, c = np.random.default_rng(0).standard_normal((3, 20))
    expected = density.log_prob(np.column_stack([a, b]), c[:, None])
    assert np.array_equal(density.log_prob(kind({"c": c, "b": b, "a": a})), expected)
    assert np.array_equal(density.log_prob(kind({"b": b, "a": a}), kind({"other": a, "c": c})), expected)
    drawn = density.draw(20, kind({"b": b, "c": c}), seed=1)
    assert np.array_equal(drawn, density.draw(20, c[:, None], seed=1))


def test_scores_of_a_large_table_count_its_rows_from_the_start() -> None:
    rows = np.zeros((20_000, 2))
    scores: list[Any] = []
    rows[17_000] = 1e3
    parts = [(part, part[:, :0]) for part in np.array_split(rows, 3)]
    with pytest.raises(UndefinedDensityError, match=r"for row 17001, though the values are finite"):
        score_parts(broken_density(), parts, scores.append)


def test_scores_of_a_split_name_the_part() -> None:
    flow: Any = broken_density().model
    good, bad = np.zeros((5, 2)), np.zeros((5, 2))
    bad[3] = 1e3
    for name in ("train", "validation", "test"):
        parts: Any = {part: bad if part == name else good for part in ("train", "validation", "test")}
        with pytest.raises(UndefinedDensityError, match=f"for {'training' if name == 'train' else name} row 4, though"):
            score_split(flow, SplitRows(**parts), seed=0)


def test_a_density_of_zero_is_scored() -> None:
    flow = Flow(Uniform(2, trainable=False), Chain([], features=2))
    density = FittedDensity(flow, schema(), [0.0, 0.0])
    assert density.log_prob(np.array([[0.5, 0.5], [2.0, 0.5]])).tolist() == [0.0, -math.inf]
    written: list[Any] = []
    total = score_parts(density, [(np.array([[0.5, 0.5], [2.0, 0.5]]), np.zeros((2, 0)))], written.append)
    assert (total.nll, total.non_finite) == (math.inf, 1)
    assert written[0].tolist() == [0.0, -math.inf]


def test_samples_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(UndefinedDensityError, match=r"\d+ of 50 samples are not numbers: the fit diverged"):
        broken_density().sample(50)
    with pytest.raises(UndefinedDensityError, match="samples are not numbers"):
        list(broken_density().sample_parts(50))


BAD_EXTRA: dict[str, tuple[dict[str, Any], str]] = {
    "no results": ({"results": None}, "expected a model with a schema and bin widths; got a model without them"),
    "no schema": ({"schema": None}, "expected a model with a schema and bin widths; got a model without them"),
    "schema of text": ({"schema": "a, b"}, "expected a model with a schema and bin widths; got a model without them"),
    "text as widths": ({"bin_widths": ["x", 0]}, "expected a model with a schema and bin widths; got a model without"),
    "more columns": ({"schema": schema("abc").to_dict()}, "expected a schema of 2 columns, given 0; got 3, given 0"),
    "one width": ({"bin_widths": [0.0]}, r"expected 2 bin widths of at least 0; got \[0.0\]"),
    "nested widths": ({"bin_widths": [[0.0, 0.0]]}, r"expected 2 bin widths of at least 0; got \[\[0.0, 0.0\]\]"),
    "negative width": ({"bin_widths": [0.0, -1.0]}, r"expected 2 bin widths of at least 0; got \[0.0, -1.0\]"),
}


@pytest.mark.parametrize("case", BAD_EXTRA)
def test_edited_columns_are_refused(case: str, tmp_path: Path) -> None:
    changed, message = BAD_EXTRA[case]
    FittedDensity(build("gaussian", 2), schema(), [0.0, 0.1]).save(tmp_path)
    FittedDensity.load(tmp_path)
    save(load(tmp_path), tmp_path, extra=read_extra(tmp_path) | changed)
    with pytest.raises(ModelFileError, match=f"{tmp_path}: {message}"):
        FittedDensity.load(tmp_path)


def test_a_schema_of_another_context_is_refused(tmp_path: Path) -> None:
    columns = {"schema": schema("ab", "c").to_dict(), "bin_widths": [0.0, 0.0], "results": {}}
    save(build("gaussian", 2, 3), tmp_path, extra=columns | {"kind": FrameKind().to_dict(), "given_apart": False})
    with pytest.raises(ModelFileError, match="expected a schema of 2 columns, given 3; got 2, given 1"):
        FittedDensity.load(tmp_path)
