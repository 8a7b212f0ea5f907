"""Numbers about conditional densities against closed forms, enumerations and the true model."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pushforward.evaluate.draws import draw_each, sample_quantiles
from pushforward.evaluate.regression import (
    LEVELS,
    MOST_ROWS,
    cde_loss,
    crps,
    interval_coverage,
    interval_levels,
    pit,
    pit_report,
    regression_report,
)
from pushforward.evaluate.statistics import Array
from pushforward.flows import build, build_mixture


class Line:
    """Two responses with normal noise: context plus 1 with standard deviation 0.5, twice the context with 2.

    Args:
        spread: Factor of the standard deviations that the density believes in.
        shift: Error of its means, in standard deviations.
        one: The first response only.
    """

    def __init__(self, spread: float = 1.0, shift: float = 0.0, *, one: bool = False) -> None:
        self.spread, self.shift, self.d = spread, shift, 1 if one else 2

    def distribution(self, context: Tensor) -> torch.distributions.Normal:
        sd = torch.tensor([0.5, 2.0])[: self.d].double()
        mean = torch.cat([context + 1.0, 2.0 * context], -1)[..., : self.d]
        return torch.distributions.Normal(mean + self.shift * sd, self.spread * sd)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        log_prob: Tensor = self.distribution(context).log_prob(x).sum(-1)
        return log_prob

    def sample(self, n: int | tuple[int, ...], context: Tensor | None = None) -> Tensor:
        assert context is not None
        lead = (n,) if isinstance(n, int) else n
        drawn: Tensor = self.distribution(context).sample(lead)
        return drawn

    def rows(self, n: int) -> tuple[Array, Array]:
        random = np.random.default_rng(5)
        context = random.normal(size=(n, 1))
        y = np.concatenate([context + 1.0, 2.0 * context], 1) + random.normal(size=(n, 2)) * [0.5, 2.0]
        return y[:, : self.d], context


def test_the_crps_of_a_normal_distribution_has_its_closed_form() -> None:
    samples = np.random.default_rng(0).normal(size=(5, 200_000))
    y = np.array([0.0, 0.5, -1.0, 2.0, 6.0])
    expected = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(crps(samples, y), expected, atol=0.006)


def test_the_crps_is_unbiased_for_few_draws() -> None:
    # All samples of two and of three draws from a distribution on three values, and its exact score.
    values, y = np.array([0.0, 1.0, 4.0]), 1.5
    exact = np.abs(values - y).mean() - 0.5 * np.abs(values[:, None] - values).mean()
    for draws in (2, 3):
        samples = np.array(list(itertools.product(values, repeat=draws)))
        assert crps(samples, np.full(len(samples), y)).mean() == pytest.approx(exact, rel=1e-12)


def test_the_cde_loss_of_a_normal_distribution_has_its_closed_form() -> None:
    random = np.random.default_rng(1)
    y, own = random.normal(size=20_000), random.normal(size=(20_000, 20))
    losses = cde_loss(stats.norm.logpdf(own), stats.norm.logpdf(y))
    assert abs(losses.mean() + 1 / (2 * math.sqrt(math.pi))) < 4 * losses.std() / math.sqrt(len(y))
    # A density twice as wide loses the integral of the squared difference.
    wide = cde_loss(stats.norm.logpdf(2 * own, scale=2), stats.norm.logpdf(y, scale=2))
    grid = np.linspace(-20, 20, 4_001)
    expected = np.trapezoid((stats.norm.pdf(grid) - stats.norm.pdf(grid, scale=2)) ** 2, grid)
    difference = wide - losses
    assert abs(difference.mean() - expected) < 4 * difference.std() / math.sqrt(len(y))


def test_pit_values_and_intervals_from_few_draws_are_exact() -> None:
    # The value and the draws are exchangeable, so that ranks and intervals are exact for any number of draws.
    drawn = np.random.default_rng(2).exponential(size=(40_000, 20))
    y, samples = drawn[:, 0], drawn[:, 1:]
    assert stats.kstest(pit(samples, y, seed=3), "uniform").pvalue > 1e-3
    (interval,) = interval_coverage(sample_quantiles(samples, [0.1, 0.9]), y, [0.8])
    assert interval.coverage == pytest.approx(0.8, abs=4 * interval.coverage_se)
    assert interval.coverage_se == pytest.approx(math.sqrt(0.8 * 0.2 / 40_000), rel=0.05)
    ends = sample_quantiles(samples, [0.1, 0.9])
    assert interval.width == pytest.approx(float((ends[:, 1] - ends[:, 0]).mean()), rel=1e-12)


def test_pit_values_of_ties_are_uniform() -> None:
    drawn = np.random.default_rng(2).integers(0, 3, size=(20_000, 10)).astype(float)
    report = pit_report(pit(drawn[:, 1:], drawn[:, 0]))
    assert report.ks_p_value > 1e-3
    assert (len(report.counts), len(report.edges), sum(report.counts)) == (20, 21, 20_000)
    assert pit_report(pit(drawn[:, 1:], drawn[:, 0] + 0.5)).ks > 0.1


def test_pit_values_count_by_their_weights() -> None:
    values = np.random.default_rng(4).beta(1.3, 1.0, size=400)
    plain = stats.kstest(values, "uniform")
    report = pit_report(values)
    assert [report.ks, report.ks_p_value] == pytest.approx([plain.statistic, plain.pvalue])
    weights = np.random.default_rng(5).integers(0, 4, size=400).astype(float)
    weighted, repeated = pit_report(values, 0.1 * weights), stats.kstest(values.repeat(weights.astype(int)), "uniform")
    assert weighted.ks == pytest.approx(repeated.statistic)
    assert weighted.ks_p_value > repeated.pvalue  # as repeated rows add no information
    np.testing.assert_allclose(
        weighted.counts, np.histogram(values, weighted.edges, weights=weights)[0] * 400 / weights.sum()
    )


def test_an_interval_that_misses_no_row_is_not_certain() -> None:
    ends, y = np.array([[0.0, 1.0]] * 20), np.full(20, 0.5)
    (interval,) = interval_coverage(ends, y, [0.9])
    assert interval.coverage == 1.0
    assert interval.coverage_se == pytest.approx(math.sqrt(22 / 24 * 2 / 24 / 24))
    (one,) = interval_coverage(ends, y, [0.9], np.eye(20)[0])
    assert one.coverage_se == pytest.approx(math.sqrt(3 / 5 * 2 / 5 / 5))


def test_coverage_by_hand() -> None:
    ends = np.array([[0.0, 1.0, -1.0, 2.0], [0.0, 4.0, -1.0, 5.0], [0.0, 1.0, -1.0, 4.0], [0.0, 2.0, -1.0, 1.0]])
    y = np.array([0.5, 4.5, 9.0, 2.0])
    half, most = interval_coverage(ends, y, [0.5, 0.9])
    assert (half.level, half.coverage, half.width) == (0.5, 0.5, 2.0)
    assert (most.coverage, most.width) == (0.5, 4.0)
    (weighted,) = interval_coverage(ends[:, :2], y, [0.5], np.array([1.0, 3.0, 0.0, 0.0]))
    assert (weighted.coverage, weighted.width) == (0.25, 3.25)
    assert interval_levels([0.5, 0.9]) == pytest.approx([0.25, 0.75, 0.05, 0.95])


def test_the_report_of_the_true_model() -> None:
    model = Line()
    y, context = model.rows(2_000)
    report = regression_report(model, y, context, ["a", "b"], draws=700)  # in two batches
    assert (report.rows, report.draws, [r.name for r in report.responses]) == (2_000, 700, ["a", "b"])
    # Of a product of two normal densities, the integral of the square is the product of 1 / (2 sqrt(pi) sd).
    assert report.cde_loss == pytest.approx(-1 / (4 * math.pi * 0.5 * 2.0), abs=4 * report.cde_loss_se)
    for sd, found in zip((0.5, 2.0), report.responses, strict=True):
        assert found.crps == pytest.approx(sd / math.sqrt(math.pi), abs=4 * found.crps_se)
        assert found.rmse == pytest.approx(sd, abs=4 * found.rmse_se)
        assert found.rmse_se == pytest.approx(sd / math.sqrt(2 * 2_000), rel=0.15)
        assert found.pit.ks_p_value > 1e-3
        for level, interval in zip(LEVELS, found.intervals, strict=True):
            assert interval.level == level
            assert interval.coverage == pytest.approx(level, abs=4 * interval.coverage_se)
            assert interval.width == pytest.approx(2 * sd * stats.norm.ppf(0.5 + level / 2), rel=0.02)


def test_the_report_shows_a_density_that_is_too_wide_or_shifted() -> None:
    y, context = Line().rows(1_000)
    true, wide, shifted = (
        regression_report(Line(*wrong), y, context, ["a", "b"], draws=200)
        for wrong in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0))
    )
    for i in range(2):
        assert wide.responses[i].intervals[0].coverage > 0.7
        assert wide.responses[i].pit.ks_p_value < 1e-6
        assert shifted.responses[i].rmse > true.responses[i].rmse + 5 * true.responses[i].rmse_se
        assert min(wide.responses[i].crps, shifted.responses[i].crps) > true.responses[i].crps
    assert min(wide.cde_loss, shifted.cde_loss) > true.cde_loss + 2 * true.cde_loss_se


def test_the_report_as_json_and_text() -> None:
    y, context = Line(one=True).rows(50)
    report = regression_report(Line(one=True), y, context, ["strength"], draws=100)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["responses"][0]["intervals"][1]["level"] == 0.9
    assert sum(values["responses"][0]["pit"]["counts"]) == 50
    lines = report.lines()
    assert [line.split()[0] for line in lines] == ["CDE", "CRPS", "RMSE", "intervals", "PIT"]
    assert "90%" in lines[3]
    assert all(line[20] == " " != line[21] for line in lines)
    two = regression_report(Line(), *Line().rows(50), ["a", "b"], draws=100)
    assert [line[:9] for line in two.lines()[1:3]] == ["CRPS of a", "RMSE of a"]
    one_row = regression_report(Line(one=True), y[:1], context[:1], ["strength"], draws=100)
    assert json.dumps(one_row.to_dict(), allow_nan=False)  # without standard errors


def test_weights_count_rows() -> None:
    y, context = Line(one=True).rows(300)
    weights = np.zeros(300)
    weights[::3] = 2.0
    few = regression_report(Line(one=True), y[::3], context[::3], ["a"], draws=400)
    found = regression_report(Line(one=True), y, context, ["a"], draws=400, weights=weights)
    assert found.responses[0].crps == pytest.approx(few.responses[0].crps, rel=0.05)
    assert found.responses[0].rmse == pytest.approx(few.responses[0].rmse, rel=0.02)
    assert found.responses[0].intervals[0].coverage == pytest.approx(few.responses[0].intervals[0].coverage, abs=0.05)


def test_of_many_rows_a_part_is_evaluated() -> None:
    y, context = Line(one=True).rows(MOST_ROWS + 1_000)
    assert regression_report(Line(one=True), y, context, ["a"], draws=40, levels=[0.5]).rows == MOST_ROWS


@pytest.mark.parametrize("model", ["flow", "mixture"])
def test_quantiles_of_models_come_from_their_samples(model: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"layers": 1, "hidden": 8, "blocks": 1}
    flow = build("nsf-ar", 2, 1, **options) if model == "flow" else build_mixture("maf", 2, 1, members=2, **options)
    context = np.linspace(-1, 1, 7)[:, None]
    before = torch.get_rng_state()
    first, again, other = (np.concatenate(list(draw_each(flow, context, 500, seed=seed))) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    found = sample_quantiles(first, [0.1, 0.5])
    assert found.shape == (7, 2, 2)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = np.concatenate(list(draw_each(flow, context, 4_000)))
    assert drawn.shape == (7, 4_000, 2)
    np.testing.assert_allclose((drawn < found[:, None, 0]).mean(1), 0.1, atol=0.06)
    report = regression_report(flow, drawn[:, 0], context, ["a", "b"], draws=60)
    assert math.isfinite(report.cde_loss)


def test_draws_come_in_batches_with_the_context_of_each_row() -> None:
    model, context = Line(), np.arange(3_000.0)[:, None]
    parts = list(draw_each(model, context, 1_000))
    assert max(len(part) for part in parts) <= 1_048
    means = np.concatenate([part.mean(1) for part in parts])
    np.testing.assert_allclose(means, np.concatenate([context + 1, 2 * context], 1), atol=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crps(np.zeros((3, 1)), np.zeros(3)), "crps: expected two or more draws of each row; got 1"),
        (
            lambda: crps(np.zeros((3, 4)), np.zeros(2)),
            r"crps: expected draws of shape \(n, s\) .* got \(3, 4\) and \(2,\)",
        ),
        (lambda: pit(np.zeros(3), np.zeros(3)), r"pit: expected draws of shape \(n, s\)"),
        (lambda: sample_quantiles(np.zeros((3, 9)), [0.05]), r"expected levels between 1 / 10 and .* got \[0.05\]"),
        (lambda: interval_coverage(np.zeros((3, 4)), np.zeros(3), [0.5]), r"expected quantiles of shape \(3, 2\)"),
        (
            lambda: regression_report(Line(), np.zeros((3, 1)), np.zeros((3, 1)), ["a", "b"]),
            r"regression_report: expected responses of shape \(1 or more, 2\)",
        ),
        (lambda: regression_report(Line(), np.zeros((0, 2)), np.zeros((0, 1)), ["a", "b"]), r"got \(0, 2\)"),
    ],
)
def test_wrong_shapes_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
