"""Location and scale of columns: as before without outliers, and not moved by a few values far outside."""

import numpy as np
import pytest
import torch

from pushforward.datasets import Column, Dataset, Schema
from pushforward.datasets.tables.spread import robust_std
from pushforward.evaluate.likelihood import log_prob
from pushforward.flows import build
from pushforward.train.data import Prepared, prepare
from pushforward.train.gaussian import gaussian_flow
from pushforward.train.options import DataOptions
from pushforward.train.scaling import scale_columns

NONE = np.empty((0, 2))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def dataset(rows: np.ndarray, context: int = 0) -> Dataset:
    columns = tuple(
        Column(f"c{k}", "double", float(x.min()), float(x.max()), None, None, len(x), 0.0) for k, x in enumerate(rows.T)
    )
    split = rows.shape[1] - context
    return Dataset("t", "t.csv", rows[:, :split], Schema(columns[:split], columns[split:]), context=rows[:, split:])


def prepared(rows: np.ndarray, context: int = 0) -> Prepared:
    return prepare(dataset(rows, context), DataOptions(source="t.csv"))


@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential", "mostly zero", "few levels", "student-t"])
def test_columns_without_outliers_keep_mean_and_standard_deviation(kind: str, rng: np.random.Generator) -> None:
    shape = (2000, 2)
    rows = {
        "normal": rng.standard_normal(shape),
        "lognormal": rng.lognormal(size=shape),
        "exponential": rng.exponential(size=shape),
        "mostly zero": np.where(rng.random(shape) < 0.9, 0.0, rng.standard_normal(shape)),
        # As in the yacht table: most values are within a tenth, the others at the ends.
        "few levels": rng.choice([-2.3, -2.4, -5.0, 0.0], p=[0.45, 0.45, 0.05, 0.05], size=shape),
        "student-t": rng.standard_t(3, shape),
    }[kind]
    standardize, tails = scale_columns(rows, NONE)
    assert tails is None
    assert standardize.config() == {"mean": rows.mean(axis=0).tolist(), "scale": rows.std(axis=0).tolist()}


@pytest.mark.parametrize("value", [1e4, 1e6, -9999.0, 3.4e38, 1e150])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_one_value_far_outside_does_not_move_the_scale_of_the_others(
    value: float, part: str, rng: np.random.Generator
) -> None:
    rows, validation = rng.standard_normal((2000, 2)), rng.standard_normal((200, 2))
    (rows if part == "training" else validation)[17, 0] = value
    standardize, tails = scale_columns(rows, validation)
    assert tails is not None
    assert tails.mapped == [True, False]
    assert standardize.config()["scale"] == pytest.approx([1.0, 1.0], rel=0.1)
    assert standardize.config()["mean"] == pytest.approx([0.0, 0.0], abs=0.1)


@pytest.mark.parametrize("code", [-99.0, 99.0])
def test_a_near_code_in_some_rows_does_not_move_the_scale(code: float, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((2000, 2))
    rows[::100, 0] = code
    assert scale_columns(rows, NONE)[0].config()["scale"] == pytest.approx([1.0, 1.0], rel=0.1)


def test_robust_std_is_that_of_the_values_that_differ(rng: np.random.Generator) -> None:
    assert robust_std(rng.standard_normal(100_000)) == pytest.approx(1.0, rel=0.02)
    assert robust_std(np.r_[np.zeros(90_000), rng.standard_normal(10_000)]) == pytest.approx(1.0, rel=0.05)
    assert robust_std(np.r_[np.zeros(999), 1.0]) == float("inf")


def test_an_outlier_costs_the_other_rows_little() -> None:
    """By mean and standard deviation each of them lost more than ten nats."""
    rows = np.random.default_rng(1).standard_normal((2000, 2))
    clean = prepared(rows)
    dirty_rows = rows.copy()
    dirty_rows[clean.splits.train[5], 0] = 1e6
    scores = []
    for data in (clean, prepared(dirty_rows)):
        x = data.map_tails(data.training_rows(torch.device("cpu")).x)
        density = data.in_data_units(data.with_tails(gaussian_flow(x))).double()
        scores.append(float(log_prob(density, torch.from_numpy(clean.test.rows)).mean()))
    assert scores[1] > scores[0] - 0.1


def test_the_density_in_data_units_includes_the_map_of_the_tails() -> None:
    """Its integral over one column is the marginal density of the other, whatever the map."""
    rows = np.random.default_rng(1).standard_normal((500, 1))
    rows[7] = 1e5
    data = prepared(rows)
    torch.manual_seed(0)
    flow = data.in_data_units(data.with_tails(build("maf", 1, hidden=8))).double().eval()
    u = torch.linspace(-35.0, 35.0, 200_001, dtype=torch.float64)
    mass = torch.trapezoid(flow.log_prob(u.sinh()[:, None]).exp() * u.cosh(), u)
    assert float(mass.detach()) == pytest.approx(1.0, abs=1e-4)


def test_heavy_tails_of_the_context_are_mapped_before_networks_see_them(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((1000, 2))
    rows[:5, 1] = 1e7
    assert prepared(rows, context=1).notes[-1].endswith("with tails mapped by a logarithm: c1")
    context = prepared(rows, context=1).training_rows(torch.device("cpu")).context
    assert context is not None
    assert float(context.abs().max()) < 25.0
    assert 0.9 < float(context.std()) < 2.5


def test_the_user_is_told_which_columns_are_treated_so(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((1000, 2))
    assert prepared(rows).notes == ()
    rows[5, 1] = 1e7
    (note,) = prepared(rows).notes
    assert note == "columns scaled without their values far outside, with tails mapped by a logarithm: c1"
