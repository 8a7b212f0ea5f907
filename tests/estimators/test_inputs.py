"""Inputs of estimators: every kind gives the same numbers, and no mask, date or large integer gets lost."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import pushforward
from pushforward import ConditionalDensity, FlowDensity
from pushforward.common.errors import DataError

N = 60
ROWS = np.random.default_rng(0).integers(-20, 20, size=(N, 2)) / 8  # exact in every dtype below
Y = ROWS[:, 0] + np.random.default_rng(1).normal(size=N)
FRAME = pd.DataFrame(ROWS, columns=["p", "q"])
GAUSSIAN: dict[str, Any] = {"flow": "gaussian", "steps": 2}


def matrix(rows: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(rows)


def scores(inputs: Any) -> Any:
    flow, conditional = FlowDensity(**GAUSSIAN).fit(inputs), ConditionalDensity(**GAUSSIAN).fit(inputs, Y)
    return np.stack([flow.score_samples(inputs), conditional.log_prob(inputs, Y)])


WITHOUT_NAMES: dict[str, Any] = {
    "list": ROWS.tolist(),
    "list of rows": list(ROWS),
    "matrix": matrix(ROWS),
    "mask without a masked cell": np.ma.array(ROWS),
    "tensor": torch.tensor(ROWS, requires_grad=True),
    "bfloat16": torch.tensor(ROWS).bfloat16(),
    "big-endian": ROWS.astype(">f4"),
    "objects": ROWS.astype(object),
    "frame with numbered columns": pd.DataFrame(ROWS),
}
WITH_NAMES: dict[str, Any] = {
    "pandas": FRAME,
    "pandas nullable": FRAME.astype("Float64"),
    "pandas objects": FRAME.astype(object),
    "pandas categories": FRAME.astype("category"),
    "pandas index": FRAME.set_index(pd.Index(range(N), name="i")),
    "polars": pl.DataFrame({"p": ROWS[:, 0], "q": ROWS[:, 1]}),
    "Arrow": pa.table({"p": ROWS[:, 0], "q": ROWS[:, 1]}),
    "Arrow dictionary": pa.table({"p": pa.array(ROWS[:, 0]).dictionary_encode(), "q": ROWS[:, 1]}),
    "dict": {"p": ROWS[:, 0], "q": ROWS[:, 1]},
    "records": np.array([tuple(row) for row in ROWS], dtype=[("p", "f8"), ("q", "f8")]),
}
KINDS = WITHOUT_NAMES | WITH_NAMES


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_numbers(kind: str) -> None:
    assert np.array_equal(scores(KINDS[kind]), scores(ROWS))


@pytest.mark.parametrize("kind", WITH_NAMES)
def test_names_come_from_tables(kind: str) -> None:
    model = FlowDensity(**GAUSSIAN).fit(WITH_NAMES[kind])
    assert list(model.feature_names_in_) == ["p", "q"]
    with pytest.raises(ValueError, match="feature names"):
        model.score_samples(pl.DataFrame({"p": ROWS[:, 0], "r": ROWS[:, 1]}))


def test_whole_numbers_and_truth_values() -> None:
    whole = np.arange(N) * 7 % 11
    for cells in (whole.astype(np.int8), whole.astype(np.uint64), pd.array(whole, dtype="Int64")):
        inputs = pd.DataFrame({"a": cells, "b": Y})
        assert np.array_equal(scores(inputs), scores(inputs.astype(float)))
    for flags in (whole > 5, pd.array(whole > 5, dtype="boolean")):
        inputs = pd.DataFrame({"a": flags, "b": Y})
        assert np.array_equal(scores(inputs), scores(inputs.astype(float)))


MASKED = np.ma.masked_array(ROWS, mask=np.zeros(ROWS.shape, bool))
MASKED[4, 1] = MASKED[6, 1] = np.ma.masked
DATES = np.arange("2020-01-01", "2020-03-01", dtype="datetime64[D]").astype("datetime64[ms]")[:N]
WHOLE = "the density needs a finite number in each cell"
BAD: dict[str, tuple[Any, str]] = {
    "mask": (MASKED, f"X: column 'x2' has 2 missing values (3.3 %, first in row 5); {WHOLE}"),
    "list of masked rows": (list(MASKED), f"X: column 'x2' has 2 missing values (3.3 %, first in row 5); {WHOLE}"),
    "pandas missing": (
        FRAME.assign(q=pd.array([None, *ROWS[1:, 1]], dtype="Float64")),
        f"X: column 'q' has 1 missing value (in row 1); {WHOLE}",
    ),
    "polars null": (
        pl.DataFrame({"p": ROWS[:, 0], "q": [None, *ROWS[1:, 1]]}),
        f"X: column 'q' has 1 missing value (in row 1); {WHOLE}",
    ),
    "pandas dates": (
        FRAME.assign(q=DATES),
        f"X: column 'q' holds dates or times (2020-01-01 00:00:00 in row 1); {WHOLE}",
    ),
    "only dates": (
        pd.DataFrame({"p": DATES}),
        f"X: column 'p' holds dates or times (2020-01-01 00:00:00 in row 1); {WHOLE}",
    ),
    "polars dates": (
        pl.DataFrame({"p": DATES, "q": ROWS[:, 1]}),
        f"X: column 'p' holds dates or times (2020-01-01 00:00:00 in row 1); {WHOLE}",
    ),
    "array of dates": (
        DATES[:, None],
        f"X: column 'x1' holds dates or times (2020-01-01 00:00:00 in row 1); {WHOLE}",
    ),
    "durations": (
        FRAME.assign(q=DATES - DATES[0]),
        f"X: column 'q' holds dates or times (0:00:00 in row 1); {WHOLE}",
    ),
    "text": (
        pa.table({"p": pa.array(["a", "b"] * (N // 2)).dictionary_encode(), "q": ROWS[:, 1]}),
        f"X: column 'p' holds text ('a' in row 1); {WHOLE}",
    ),
    "another spelling": (FRAME.assign(q="1,5"), f"X: column 'q' holds text ('1,5' in row 1); {WHOLE}"),
    "large integers": (
        np.stack([2**60 + np.arange(N), np.arange(N) % 7], 1),
        f"X: column 'x1' holds integers beyond 2**53, which float64 cannot represent exactly; {WHOLE}",
    ),
    "same names": (
        pd.DataFrame(ROWS, columns=["p", "p"]),
        f"X: column 'p' appears 2 times; {WHOLE}",
    ),
    "mixed names": (
        pd.DataFrame(ROWS, columns=["p", 1]),
        "X: expected names of columns that are all text; got text and others",
    ),
    "levels of names": (
        pd.DataFrame(ROWS, columns=pd.MultiIndex.from_tuples([("p", "q"), ("p", "r")])),
        "X: expected columns with one name each; got a MultiIndex; join its levels to names",
    ),
    "lazy": (FRAME.pipe(pl.from_pandas).lazy(), "X: expected rows; got a polars LazyFrame; call .collect() first"),
    "too small": (
        ROWS * [1, 1e-300],
        "X: column 'x2' varies by only 4.87e-300, whose square underflows; rescale it or leave it out",
    ),
    "too large": (
        ROWS * [1e-300, 1e300],
        "X: 2 of 2 columns cannot be used as they are\n"
        "  'x1'  varies by only 4.75e-300, whose square underflows\n"
        "  'x2'  holds 2.5e+300, whose square overflows\n"
        "for each: rescale it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_refused(case: str) -> None:
    inputs, message = BAD[case]
    for fit in (lambda: FlowDensity(**GAUSSIAN).fit(inputs), lambda: ConditionalDensity(**GAUSSIAN).fit(inputs, Y)):
        with pytest.raises(DataError) as caught:
            fit()
        assert str(caught.value) == message


def test_bad_inputs_are_refused_when_they_are_scored() -> None:
    flow, conditional = FlowDensity(**GAUSSIAN).fit(ROWS), ConditionalDensity(**GAUSSIAN).fit(ROWS, Y)
    for inputs, what in ((MASKED, "has 2 missing values"), (ROWS * [1, 1e300], "holds 2.5e+300, whose square")):
        for call in (
            lambda x: flow.score_samples(x),
            lambda x: flow.score(x),
            lambda x: conditional.predict(x),
            lambda x: conditional.quantiles(x, [0.5]),
            lambda x: conditional.sample(x),
            lambda x: conditional.log_prob(x, Y),
            lambda x: conditional.score(x, Y),
        ):
            with pytest.raises(ValueError, match=r"X: column 'x2' ") as caught:
                call(inputs)
            assert what in str(caught.value)
    # Rows to score need not vary, even by as little as rows to fit.
    assert conditional.predict(np.array([[1.0, 0.0], [1.0, 1e-200]])).shape == (2,)


def test_constant_columns_have_no_density_but_may_be_inputs() -> None:
    inputs = np.c_[ROWS, np.ones(N)]
    with pytest.raises(ValueError, match=r"^X: column 'x3' is constant \(1\), so it has no density; leave it out$"):
        FlowDensity(**GAUSSIAN).fit(inputs)
    model = ConditionalDensity(**GAUSSIAN).fit(inputs, Y)
    assert np.array_equal(model.log_prob(inputs, Y), ConditionalDensity(**GAUSSIAN).fit(ROWS, Y).log_prob(ROWS, Y))
    with pytest.raises(ValueError, match=r"^X: expected an input that varies; all columns are constant$"):
        ConditionalDensity(**GAUSSIAN).fit(inputs[:, 2:], Y)


def test_a_matrix_is_rows_of_two_dimensions_for_fit_too() -> None:
    options: dict[str, Any] = {"steps": 2, "flow": "gaussian", "progress": False}
    found, expected = pushforward.fit(matrix(ROWS), **options), pushforward.fit(ROWS, **options)
    assert np.array_equal(found.log_prob(matrix(ROWS)), expected.log_prob(ROWS))
    assert type(found.sample(3)) is np.ndarray
