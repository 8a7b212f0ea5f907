"""Targets, weights, levels and numbers of samples of :class:`ConditionalDensity`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pushforward import ConditionalDensity, FlowDensity
from pushforward.common.errors import DataError
from pushforward.evaluate.likelihood import UndefinedDensityError

N = 60
ROWS = np.random.default_rng(0).normal(size=(N, 2))
TARGETS = np.random.default_rng(1).normal(size=(N, 2)) * [1, 10] + ROWS
FRAME = pd.DataFrame(TARGETS, columns=["u", "v"])
GAUSSIAN: dict[str, Any] = {"flow": "gaussian", "steps": 2}


def fitted(y: Any, **more: Any) -> ConditionalDensity:
    return ConditionalDensity(**GAUSSIAN).fit(ROWS, y, **more)


ONE = TARGETS[:, 0]
VECTORS: dict[str, Any] = {
    "list": ONE.tolist(),
    "Series": pd.Series(ONE, name="u", index=range(N, 0, -1)),
    "objects": pd.Series(ONE).astype(object),
    "polars": pl.Series("u", ONE),
    "Arrow": pa.array(ONE),
    "Arrow chunks": pa.chunked_array([ONE[:9], ONE[9:]]),
    "tensor": torch.tensor(ONE, requires_grad=True),
    "mask without a masked cell": np.ma.array(ONE),
}
COLUMNS: dict[str, Any] = {
    "list": ONE[:, None].tolist(),
    "frame": FRAME[["u"]],
    "polars": pl.DataFrame({"u": ONE}),
    "Arrow": pa.table({"u": ONE}),
    "dict": {"u": ONE},
}


@pytest.mark.parametrize("y", VECTORS.values(), ids=VECTORS)
def test_vectors_of_every_kind(y: Any) -> None:
    model, expected = fitted(y), fitted(ONE)
    assert model.predict(ROWS).shape == (N,)
    assert np.array_equal(model.log_prob(ROWS, y), expected.log_prob(ROWS, ONE))
    assert model.score(ROWS, y) == expected.score(ROWS, ONE)


@pytest.mark.parametrize("y", COLUMNS.values(), ids=COLUMNS)
def test_columns_of_every_kind(y: Any) -> None:
    model, expected = fitted(y), fitted(ONE)
    assert model.predict(ROWS).shape == (N, 1)
    for scored in (y, ONE, FRAME["v"] * 0 + ONE):
        assert np.array_equal(model.log_prob(ROWS, scored), expected.log_prob(ROWS, ONE))


def test_a_column_that_numbers_the_rows_is_a_target_too() -> None:
    y = pd.DataFrame({"index": np.arange(N), "u": ONE})
    assert fitted(y).predict(ROWS[:1]).shape == (1, 2)
    assert np.array_equal(fitted(y).log_prob(ROWS, y), fitted(y.to_numpy()).log_prob(ROWS, y.to_numpy()))


def test_targets_are_found_by_name() -> None:
    model = fitted(FRAME)
    expected = fitted(TARGETS).log_prob(ROWS, TARGETS)
    swapped = {"v": TARGETS[:, 1], "u": TARGETS[:, 0]}
    tables = [FRAME[["v", "u"]], pl.DataFrame(swapped), pa.table(swapped), swapped, FRAME.assign(w=1)[["w", "v", "u"]]]
    for y in [FRAME, TARGETS, *tables]:
        assert np.array_equal(model.log_prob(ROWS, y), expected)
        assert model.score(ROWS, y) == expected.mean()
    for renamed in (FRAME.rename(columns={"u": "z"}), pl.DataFrame({"z": ONE, "v": ONE})):
        with pytest.raises(ValueError, match=r"^y: lacks the columns u; it has z, v$"):
            model.log_prob(ROWS, renamed)
        with pytest.raises(ValueError, match=r"^y: lacks the columns u; it has z, v$"):
            model.score(ROWS, renamed)
    with pytest.raises(ValueError, match=r"^y: lacks the columns u; it has z$"):
        fitted(FRAME[["u"]]).score(ROWS, pd.DataFrame({"z": ONE}))
    # Whole numbers are names, too.
    numbered = pd.DataFrame(TARGETS)
    assert np.array_equal(fitted(numbered).log_prob(ROWS, numbered[[1, 0]]), expected)


def test_names_are_not_compared_with_those_that_the_fit_did_not_have() -> None:
    model = fitted(TARGETS)
    with pytest.warns(UserWarning, match="^y has column names, but ConditionalDensity was fitted without"):
        found = model.log_prob(ROWS, FRAME)
    assert np.array_equal(found, model.log_prob(ROWS, TARGETS))
    assert np.isfinite(fitted(ONE).score(ROWS, FRAME[["u"]]))


WHOLE = "the density needs a finite number in each cell"
MASKED = np.ma.masked_array(ONE, mask=[k in (2, 5) for k in range(N)])
DATES = np.arange(N).astype("datetime64[s]")
BAD: dict[str, tuple[Any, str]] = {
    "mask": (MASKED, f"y: has 2 missing values (3.3 %, first in row 3); {WHOLE}"),
    "list of masked cells": (
        [np.ma.masked_array([v], mask=[k == 2]) for k, v in enumerate(ONE)],
        f"y: has 1 missing value (in row 3); {WHOLE}",
    ),
    "null": (pl.Series([None, *ONE[1:]]), f"y: has 1 missing value (in row 1); {WHOLE}"),
    "null of a frame": (
        pl.DataFrame({"u": [None, *ONE[1:]]}),
        f"y: column 'u' has 1 missing value (in row 1); {WHOLE}",
    ),
    "no value": (ONE * np.nan, f"y: has no values at all; {WHOLE}"),
    "infinite": ([np.inf, np.nan] * (N // 2), f"y: has no finite values (30 missing, 30 infinite); {WHOLE}"),
    "complex": (ONE + 5j, "y: expected real numbers; got complex128"),
    "text": (["a"] * N, f"y: holds text ('a' in row 1); {WHOLE}"),
    "dates": (DATES, f"y: holds dates or times (1970-01-01 00:00:00 in row 1); {WHOLE}"),
    "large integers": (
        2**60 + np.arange(N),
        f"y: holds integers beyond 2**53, which float64 cannot represent exactly; {WHOLE}",
    ),
    "too few": (ONE[:5], f"y: expected {N} rows, as in X; got 5"),
    "none": (ONE[:0], "y: expected at least 1 row; got none"),
    "three dimensions": (
        TARGETS[..., None],
        f"y: expected rows of the shape (rows, columns); got the shape ({N}, 2, 1)",
    ),
    "a number": (
        3.0,
        "y: expected an array, a torch tensor, a pandas, polars or Arrow table, a dict of columns, or a list of rows; "
        "got float",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_targets_are_refused(case: str) -> None:
    y, message = BAD[case]
    model = fitted(ONE)
    for call in (lambda: fitted(y), lambda: model.log_prob(ROWS, y), lambda: model.score(ROWS, y)):
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value) == message


def test_as_many_targets_as_in_the_fit() -> None:
    with pytest.raises(DataError, match=r"^y: expected 1 column, as in the fit; got 2$"):
        fitted(ONE).log_prob(ROWS, TARGETS)
    with pytest.raises(DataError, match=r"^y: expected 2 columns, as in the fit; got 1$"):
        fitted(FRAME).score(ROWS, FRAME["u"])


def test_targets_of_a_fit_must_vary() -> None:
    for y, message in (
        (ONE * 0, r"^y: is constant \(0\), so it has no density; the density needs numbers that vary$"),
        (ONE * 1e-300, r"^y: varies by only .*e-300, whose square underflows; rescale it$"),
        (FRAME.assign(v=1.5), r"^y: column 'v' is constant \(1.5\), so it has no density; leave it out$"),
        (None, r"requires y to be passed, but the target y is None"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(y)
    assert np.isfinite(fitted(ONE).score(ROWS[:1], [0.0]))


WEIGHTS = np.random.default_rng(2).integers(0, 4, size=N).astype(float)
WEIGHTS[0] = 1.0
MASKED_WEIGHTS = np.ma.masked_array(WEIGHTS, mask=[k == 2 for k in range(N)])
NUMBERS = "expected finite numbers of at least 0"
BAD_WEIGHTS: dict[str, tuple[Any, str]] = {
    "negative": (np.where(WEIGHTS == 0, -1, WEIGHTS), "sample_weight: has -1 in row "),
    "NaN": ([np.nan, *WEIGHTS[1:]], f"sample_weight: has 1 missing value (in row 1); {NUMBERS}"),
    "only NaN": (WEIGHTS * np.nan, f"sample_weight: has no values at all; {NUMBERS}"),
    "infinite": (np.full(N, np.inf), f"sample_weight: has no finite values (0 missing, {N} infinite); {NUMBERS}"),
    "mask": (MASKED_WEIGHTS, f"sample_weight: has 1 missing value (in row 3); {NUMBERS}"),
    "zeros": (np.zeros(N), "sample_weight: expected some weights above zero; got only zeros"),
    "too few": (np.ones(3), f"sample_weight: expected {N} numbers; got 3"),
    "two a row": (np.ones((N, 2)), f"sample_weight: expected {N} numbers; got {N} rows of 2 columns"),
    "text": (["a"] * N, f"sample_weight: holds text ('a' in row 1); {NUMBERS}"),
    "complex": (WEIGHTS + 1j, "sample_weight: expected real numbers; got complex128"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case: str) -> None:
    weights, message = BAD_WEIGHTS[case]
    model = fitted(ONE)
    for call in (
        lambda: fitted(ONE, sample_weight=weights),
        lambda: FlowDensity(**GAUSSIAN).fit(ROWS, sample_weight=weights),
        lambda: model.score(ROWS, ONE, weights),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value).startswith(message)


def test_a_score_is_weighted() -> None:
    model = fitted(ONE)
    expected = np.repeat(model.log_prob(ROWS, ONE), WEIGHTS.astype(int)).mean()
    for scale in (1.0, 1e-310, 1e-44, 1e60, 1e150 / 4):
        assert model.score(ROWS, ONE, WEIGHTS * scale) == pytest.approx(expected, rel=1e-12)
    assert model.score(ROWS, ONE, 2.0) == pytest.approx(model.score(ROWS, ONE))


@pytest.mark.parametrize("flow", ["gaussian", "maf"])
def test_the_scale_of_weights_does_not_matter(flow: str) -> None:
    options: dict[str, Any] = {"flow": flow, "steps": 3, "keys": None if flow == "gaussian" else {"hidden": 8}}

    def log_probs(weights: Any) -> Any:
        density = FlowDensity(**options).fit(ROWS, sample_weight=weights)
        conditional = ConditionalDensity(**options).fit(ROWS, ONE, sample_weight=weights)
        return np.stack([density.score_samples(ROWS), conditional.log_prob(ROWS, ONE)])

    expected = log_probs(WEIGHTS)
    assert not np.allclose(expected, log_probs(None), atol=1e-3)
    for power in (-1_000, -150, 150, 490):
        assert np.array_equal(log_probs(WEIGHTS * 2.0**power), expected)
    for scale in (1e-300, 1e-60, 1e-44, 1e60):
        assert np.allclose(log_probs(WEIGHTS * scale), expected, rtol=1e-5)


def test_no_quantile_within_reach_is_an_error() -> None:
    """Not the end of the search, as if it were a quantile; the message has the number of the row."""
    x = np.random.default_rng(0).normal(size=(200, 2))
    model = ConditionalDensity("maf", steps=20).fit(x, x.sum(1) + np.random.default_rng(1).normal(size=200))
    for far in (1e10, 1e30, 1e140):
        probe = [[0.0, 0.0], [0.1, 0.0], [far, -far]]
        calls: list[Callable[[Any], Any]] = [
            model.predict,
            lambda p: model.quantiles(p, [0.1, 0.9]),
            lambda p: model.interval(p, 0.5),
        ]
        for call in calls:
            with pytest.raises(UndefinedDensityError, match=r"^the density given row 3 has no finite quantile within"):
                call(probe)
            assert np.isfinite(call(probe[:2])).all()
    several = ConditionalDensity("maf", steps=20).fit(x, x[:, ::-1] + np.random.default_rng(1).normal(size=(200, 2)))
    with pytest.raises(UndefinedDensityError, match=r"^the density given row 2 has no finite mean: the given values"):
        several.predict([[0.0, 0.0], [1e30, 1e30]])


def test_levels_coverage_and_numbers_of_samples() -> None:
    model: Any = fitted(ONE)
    density: Any = FlowDensity(**GAUSSIAN).fit(ROWS)
    assert model.quantiles(ROWS, [0.1, 0.9]).shape == (N, 2)
    assert model.quantiles(ROWS, 0.5).shape == (N, 1)
    for levels in ("a", ["a"], None, [None], [0.5 + 1j], [[0.1, 0.9]], [[0.1], [0.2, 0.3]], {"a": 0.5}, [True, False]):
        with pytest.raises(ValueError, match=r"^levels: expected numbers above 0 and below 1; got "):
            model.quantiles(ROWS, levels)
    with pytest.raises(ValueError, match=r"^levels: expected numbers above 0 and below 1; got masked_array"):
        model.quantiles(ROWS, np.ma.masked_array([0.1, 0.9], mask=[False, True]))
    for level in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match=r"^quantiles: expected levels above 0 and below 1; got "):
            model.quantiles(ROWS, [level])
    for coverage in ("a", None, [0.9], 0.9 + 0j, 0, 1, np.nan, True):
        with pytest.raises(ValueError, match=r"^coverage: expected a number above 0 and below 1; got "):
            model.interval(ROWS, coverage)
    assert model.interval(ROWS, np.float32(0.5)).shape == (N, 2)
    for n in (-1, 0, 1.5, "3", None, True):
        with pytest.raises(ValueError, match=r"^n: expected a whole number of at least 1; got "):
            model.sample(ROWS, n)
        with pytest.raises(ValueError, match=r"^n_samples: expected a whole number of at least 1; got "):
            density.sample(n)
    assert model.sample(ROWS, np.int64(2)).shape == (2, N)
