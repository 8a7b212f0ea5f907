"""Metrics of a fitted density against closed forms."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pushforward.common.files import json_safe
from pushforward.evaluate import (
    Nll,
    SplitRows,
    classifier_two_sample_test,
    compare_samples,
    draw_samples,
    evaluate_flow,
    kl_to_truth,
    latent_normality,
    latents,
    log_det_error,
    log_prob,
    nll,
    nll_from,
    paired_difference,
    round_trip,
    sliced_wasserstein,
)
from pushforward.evaluate.evaluation import EvaluationReport
from pushforward.evaluate.samples import correlation_difference, ks_distances
from pushforward.evaluate.sampling import sample_batches
from pushforward.flows import Flow, build


class Affine(nn.Module):
    """The map ``(x - loc - context) / scale`` from data to base, with optional errors."""

    def __init__(self, loc: Tensor, scale: Tensor, *, log_det_factor: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(loc), nn.Parameter(scale)
        self.log_det_factor, self.bias = log_det_factor, bias

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift = self.loc if context is None else self.loc + context
        log_det = -self.log_det_factor * self.scale.log().sum()
        return (x - shift) / self.scale, log_det.expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift = self.loc if context is None else self.loc + context
        log_det = self.log_det_factor * self.scale.log().sum()
        return z * self.scale + shift + self.bias * self.scale, log_det.expand(z.shape[:-1])


class StandardNormal:
    def latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return z


class GaussianFlow(nn.Module):
    """An exact diagonal Gaussian with the interface of a flow; records its largest batch."""

    def __init__(self, loc: list[float], scale: list[float], dtype: torch.dtype = torch.float64, **faults: Any) -> None:
        super().__init__()
        self.bijection = Affine(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype), **faults)
        self.base = StandardNormal()
        self.dropout = nn.Dropout(0.5)
        self.largest_batch = 0

    def latents(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.base.latents(self.bijection(x, context)[0])

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(x))
        z, log_det = self.bijection(x, context)
        value: Tensor = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) + log_det
        kept: Tensor = self.dropout(value)
        return kept

    def sample(self, n: int | tuple[int, ...], context: Tensor | None = None) -> Tensor:
        lead = (n,) if isinstance(n, int) else tuple(n)
        lead = lead if context is None else (*lead, *context.shape[:-1])
        x: Tensor = self.bijection.inverse(torch.randn(*lead, len(self.bijection.loc)).to(self.bijection.loc), context)[
            0
        ]
        return x


LOC, SCALE = [1.0, -2.0, 0.5], [0.5, 2.0, 3.0]


def true_samples(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draw samples of the distribution of ``GaussianFlow(LOC, SCALE)``."""
    return np.random.default_rng(seed).normal(LOC, SCALE, (n, 3))


# ---- likelihood ----------------------------------------------------------------------------------------------


def test_nll_of_a_gaussian_is_its_entropy_within_the_standard_error() -> None:
    score = nll(GaussianFlow(LOC, SCALE), true_samples(20_000, 0))
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * scale**2) for scale in SCALE)
    # -log p has variance D/2 under p itself.
    assert score.se == pytest.approx(math.sqrt(1.5 / 20_000), rel=0.03)
    assert abs(score.nll - entropy) < 4 * score.se
    assert (score.rows, score.non_finite) == (20_000, 0)


def test_log_prob_equals_scipy_row_by_row() -> None:
    x = true_samples(50, 1)
    expected = stats.norm(LOC, SCALE).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(log_prob(GaussianFlow(LOC, SCALE), x).numpy(), expected, rtol=1e-12)


def test_streaming_equals_one_pass_and_bounds_the_batch() -> None:
    flow, x = GaussianFlow(LOC, SCALE), torch.from_numpy(true_samples(103, 2))
    context = torch.linspace(0, 1, 103, dtype=torch.float64)[:, None].expand(103, 3)
    streamed = log_prob(flow, x, context, batch_size=10)
    assert flow.largest_batch == 10
    torch.testing.assert_close(streamed, log_prob(flow, x, context), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_log_prob_keeps_leading_dimensions_and_broadcasts_context(shape: tuple[int, ...]) -> None:
    flow, x = GaussianFlow(LOC, SCALE), torch.randn(*shape, 3, dtype=torch.float64)
    context = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    flow.eval()
    torch.testing.assert_close(log_prob(flow, x, context), flow.log_prob(x.reshape(-1, 3), context).reshape(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_keeps_dtype_and_gives_no_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    values = log_prob(GaussianFlow(LOC, SCALE, dtype), x)
    assert values.dtype == dtype
    assert not values.requires_grad


def test_log_prob_evaluates_without_dropout_and_restores_every_mode() -> None:
    flow = GaussianFlow(LOC, SCALE).train()
    flow.bijection.eval()  # frozen by its owner
    x = true_samples(200, 3)
    assert torch.equal(log_prob(flow, x), log_prob(flow, x))
    assert (flow.training, flow.dropout.training, flow.bijection.training) == (True, True, False)


def test_a_row_of_zero_density_makes_the_nll_infinite_and_is_counted() -> None:
    score = nll_from(np.array([-1.0, -np.inf, -2.0]))
    assert (score.nll, score.se, score.non_finite) == (math.inf, math.inf, 1)
    assert "1 of 3 rows not finite" in str(score)
    assert score.to_dict() == {"nll": None, "se": None, "rows": 3, "non_finite": 1}
    assert math.isnan(nll_from(np.array([-1.0, np.nan])).nll)


def test_a_single_row_has_no_standard_error() -> None:
    score = nll_from(torch.tensor([-1.5]))
    assert score.nll == 1.5
    assert math.isnan(score.se)
    assert "±" not in str(score)


def test_nll_sums_float32_in_double_precision() -> None:
    values = torch.full((3_000_001,), -0.1, dtype=torch.float32)
    assert nll_from(values).nll == pytest.approx(float(np.float32(0.1)), abs=1e-12)


def test_paired_difference_cancels_what_both_share() -> None:
    generator = np.random.default_rng(4)
    hard, own = generator.normal(0, 10, 5_000), generator.normal(0.3, 0.1, 5_000)
    mean, se = paired_difference(hard + own, hard)
    assert mean == pytest.approx(own.mean())
    assert se == pytest.approx(own.std(ddof=1) / math.sqrt(5_000))


def test_paired_difference_shows_zero_density_on_either_side() -> None:
    one, zero = np.array([-1.0, -1.0]), np.array([-1.0, -np.inf])
    assert paired_difference(one, zero)[0] == math.inf
    assert paired_difference(zero, one)[0] == -math.inf
    assert math.isnan(paired_difference(zero, zero)[0])


def test_kl_to_truth_of_two_gaussians() -> None:
    x = true_samples(40_000, 5)
    true = stats.norm(LOC, SCALE).logpdf(x).sum(axis=1)
    other = [0.6, 2.0, 3.0]
    kl, se = kl_to_truth(true, log_prob(GaussianFlow(LOC, other), x))
    expected = math.log(0.6 / 0.5) + 0.25 / (2 * 0.36) - 0.5
    assert abs(kl - expected) < 4 * se < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nll_from(np.array([])), "nll_from: expected at least one row; got none"),
        (lambda: paired_difference(np.zeros(2), np.zeros(3)), "expected as many rows on both sides; got 2 and 3"),
        (lambda: log_prob(GaussianFlow(LOC, SCALE), np.zeros((2, 3)), batch_size=0), "batch_size of at least 1; got 0"),
        (lambda: log_prob(GaussianFlow(LOC, SCALE), np.array(1.0)), "got a single number"),
        (lambda: latent_normality(np.zeros(3)), r"latents of shape \(rows, features\); got \(3,\)"),
        (lambda: latent_normality(np.full((3, 1), np.nan)), "at least two finite rows; got 0"),
        (lambda: round_trip(GaussianFlow(LOC, SCALE), np.zeros(3)), r"shape \(rows, features\); got \(3,\)"),
        (
            lambda: compare_samples(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros((3, 2)), ["a", "b"], 0),
            r"held_out of shape \(2 or more, 2\); got \(3, 1\)",
        ),
        (
            lambda: compare_samples(np.full((3, 1), np.inf), np.zeros((3, 1)), np.zeros((3, 1)), ["a"], 0),
            "expected finite samples; got 3 of 3 not finite",
        ),
    ],
)
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(6_000, 6_000), (6_000, 4_000)])
def test_sliced_wasserstein_of_shifted_gaussians(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(6)
    shift = np.array([2.0, 1.0, 0.0, -1.0])
    x, y = (generator.standard_normal((size, 4)) for size in sizes)
    # W2 of a shift projected on a direction theta is |theta . shift|, and E (theta . shift)^2 = |shift|^2 / D.
    exact = math.sqrt(shift @ shift / 4)
    assert sliced_wasserstein(x, y + shift, projections=2_000, seed=0) == pytest.approx(exact, rel=0.04)
    assert sliced_wasserstein(x, y, seed=0) < 0.06


def test_sliced_wasserstein_in_one_dimension_equals_scipy_for_unequal_sizes() -> None:
    generator = np.random.default_rng(7)
    x, y = generator.standard_normal((37, 1)), generator.exponential(size=(23, 1))
    expected = stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y, order=1, projections=3, seed=0) == pytest.approx(expected, rel=1e-12)


def test_classifier_finds_a_shift_and_no_difference_within_one_distribution() -> None:
    generator = np.random.default_rng(8)
    x, y = generator.standard_normal((800, 3)), generator.standard_normal((1_000, 3))
    same = classifier_two_sample_test(x, y, seed=0)
    assert abs(same.accuracy - 0.5) < 4 * same.se
    assert abs(same.auc - 0.5) < 0.04
    assert same.rows == 800
    far = classifier_two_sample_test(x, y + 2.0, seed=0)
    assert far.accuracy > 0.9
    assert far.auc > 0.95


def test_classifier_sees_dependence_that_no_column_shows() -> None:
    generator = np.random.default_rng(9)
    x = generator.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 2_000)
    assert classifier_two_sample_test(x, generator.permuted(x, axis=0), seed=0).accuracy > 0.65


def test_ks_distance_equals_scipy_with_ties() -> None:
    generator = np.random.default_rng(10)
    x, y = generator.integers(0, 6, (80, 2)).astype(float), generator.normal(2.0, 2.0, (50, 2)).round()
    expected = [stats.ks_2samp(x[:, i], y[:, i]).statistic for i in range(2)]
    np.testing.assert_allclose(ks_distances(x, y), expected)


def test_correlation_difference_sees_the_sign_and_survives_constant_columns() -> None:
    x = np.random.default_rng(11).standard_normal(500)
    assert correlation_difference(np.stack([x, x], 1), np.stack([x, -x], 1)) == pytest.approx(2.0)
    assert correlation_difference(np.stack([x, 0 * x], 1), np.stack([x, x], 1)) == pytest.approx(1.0)
    assert correlation_difference(x[:, None], x[:, None]) == 0.0


def test_compare_samples_does_not_depend_on_units_and_exceeds_its_reference_for_a_bad_fit() -> None:
    x, y, reference = (true_samples(800, seed) for seed in (12, 13, 14))
    names = ["a", "b", "c"]
    report = compare_samples(x, y, reference, names, seed=0)
    units = np.array([1e3, 1e-3, 1.0])
    scaled = compare_samples(units * x, units * y, units * reference, names, seed=0)
    assert scaled.sliced_wasserstein == pytest.approx(report.sliced_wasserstein)
    assert report.sliced_wasserstein < 2 * report.sliced_wasserstein_reference
    worse = compare_samples(x + np.array([0.5, 0, 0]), y, reference, names, seed=0)
    assert worse.sliced_wasserstein > 3 * worse.sliced_wasserstein_reference
    assert worse.ks["a"] > 0.3 > 0.1 > worse.ks["b"]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["c2st"]["rows"] == 800


def test_compare_samples_counts_samples_that_are_not_finite() -> None:
    x = true_samples(60, 15)
    x[3, 1] = np.nan
    report = compare_samples(x, true_samples(60, 16), true_samples(60, 17), ["a", "b", "c"], seed=0)
    assert (report.non_finite, report.rows) == (1, 59)
    assert "1 samples, left out" in report.lines()[-1]


# ---- latents -------------------------------------------------------------------------------------------------


def test_latents_of_the_true_flow_are_normal() -> None:
    z = latents(GaussianFlow(LOC, SCALE), true_samples(3_000, 18))
    report = latent_normality(z)
    assert min(*report.ks_p_value, report.radius_ks_p_value) > 0.001
    assert max(map(abs, report.mean)) < 0.08
    assert report.max_correlation < 0.08
    assert report.ks[0] == pytest.approx(stats.kstest(z[:, 0], "norm").statistic)


def test_latents_show_a_wide_column_and_a_correlation() -> None:
    z = np.random.default_rng(19).standard_normal((3_000, 3))
    z[:, 1] *= 1.2
    z[:, 2] = 0.8 * z[:, 0] + 0.6 * z[:, 2]
    report = latent_normality(torch.from_numpy(z))
    assert report.ks_p_value[1] < 1e-4 < 1e-2 < report.ks_p_value[2]
    assert report.max_correlation == pytest.approx(0.8, abs=0.03)
    assert report.radius_ks_p_value < 1e-4
    assert "feature 1" in report.lines()[1]


def test_latents_of_one_feature() -> None:
    report = latent_normality(np.append(np.random.default_rng(20).standard_normal((40, 1)), [[np.inf]], axis=0))
    assert (report.rows, report.non_finite, report.max_correlation) == (40, 1, 0.0)


# ---- inversion -----------------------------------------------------------------------------------------------


def test_round_trip_measures_in_standard_deviations() -> None:
    x = true_samples(400, 21)
    exact = round_trip(GaussianFlow(LOC, SCALE), x, float32=True)
    assert max(exact.points, exact.log_det) < 1e-12
    assert exact.points_float32 is not None
    assert 1e-9 < exact.points_float32 < 1e-5
    off = round_trip(GaussianFlow(LOC, SCALE, bias=0.01), x, std=np.array(SCALE))
    assert off.points == pytest.approx(0.01)


def test_log_det_error_catches_what_a_round_trip_cannot() -> None:
    x, doubled = true_samples(20, 22), GaussianFlow(LOC, SCALE, log_det_factor=2.0)
    assert round_trip(doubled, x).log_det < 1e-12
    assert log_det_error(doubled, x).error == pytest.approx(math.log(0.5 * 2.0 * 3.0))
    exact = log_det_error(GaussianFlow(LOC, SCALE), x, float32=True)
    assert exact.error < 1e-12
    assert exact.error_float32 is not None
    assert exact.error_float32 < 1e-5
    assert exact.rows == 8


def test_inversion_leaves_the_flow_alone_and_takes_context() -> None:
    flow = GaussianFlow(LOC, SCALE).train()
    x = true_samples(10, 23)
    assert round_trip(flow, x, x, float32=True).points < 1e-12
    assert log_det_error(flow, x, x, float32=True).error < 1e-12
    assert flow.training
    assert flow.bijection.loc.dtype == torch.float64
    assert flow.bijection.loc.grad is None


def test_a_round_trip_that_fails_stays_visible() -> None:
    assert math.isnan(round_trip(GaussianFlow(LOC, SCALE, bias=math.nan), true_samples(5, 24)).points)


# ---- the report ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    train, validation, test = true_samples(3_000, 25), true_samples(800, 26), true_samples(1_000, 27)
    return evaluate_flow(
        GaussianFlow(LOC, SCALE),
        SplitRows(train, validation, test),
        columns=["a", "b", "c"],
        standardize_log_det=float(np.log(train.std(axis=0)).sum()),
        true_log_prob=lambda x: np.asarray(stats.norm(LOC, SCALE).logpdf(x).sum(axis=1)),
        samples=2_000,
        float32=True,
    )


def test_report_of_the_true_flow(report: EvaluationReport) -> None:
    # Standardised columns of a Gaussian have the entropy of the standard normal.
    assert report.test_nll_standardized == pytest.approx(1.5 * math.log(2 * math.pi * math.e), abs=0.12)
    assert report.kl_to_truth is not None
    assert abs(report.kl_to_truth[0]) < 1e-12
    assert [baseline.name for baseline in report.baselines] == ["gaussian", "gaussian-mixture", "kde"]
    for baseline in report.baselines:
        gain, se = report.gains[baseline.name]
        assert gain == pytest.approx(baseline.nll.nll - report.test.nll)
        assert gain > -3 * se  # nothing is better than the true distribution
    assert report.gains["kde"][0] > 3 * report.gains["kde"][1]
    assert report.samples is not None
    assert abs(report.samples.c2st.accuracy - 0.5) < 4 * report.samples.c2st.se
    assert max(report.round_trip.points, report.log_det.error) < 1e-6


def test_report_is_json_and_text(report: EvaluationReport) -> None:
    out = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert out["test"]["nll"] == report.test.nll
    assert set(out["gains"]) == {"gaussian", "gaussian-mixture", "kde"}
    assert out["kl_to_truth_se"] >= 0
    text = "\n".join(report.lines())
    for part in (
        "Kernel density",
        f"{report.test.nll:.4f}",
        "KL(true distribution || flow)",
        "chi-squared(3)",
        "in float32",
    ):
        assert part in text
    assert max(map(len, report.lines()[:5])) <= 100


def test_a_flow_that_is_worse_than_a_baseline_says_so_first(report: EvaluationReport) -> None:
    assert report.warnings() == []
    worse = replace(report, gains=report.gains | {"gaussian": (-4.6, 0.1), "kde": (-0.1, 0.1)})
    assert len(replace(report, gains={"gaussian": (-4.6, math.nan)}).warnings()) == 1  # of a single test row
    first, *rest = worse.lines()
    assert first == "warning: the baseline 'Gaussian' is better than the flow, by 4.6000 ± 0.1000 nats"
    assert not any("warning" in line for line in rest)


def test_the_report_names_the_rows_it_is_about(report: EvaluationReport) -> None:
    other = replace(report, evaluated="other.csv")
    text = "\n".join(other.lines())
    assert text.startswith("on the 1,000 rows of other.csv\n")
    assert f"\ntrain       {report.train}\nvalidation  {report.validation}\nother.csv   {report.test}\n" in text
    assert "against 1,000 rows of other.csv)" in text
    assert "latents of 1,000 rows of other.csv" in text
    assert "test" not in text.replace("classifier test", "")
    assert "there are no baselines" not in text
    assert f"\ntest        {report.test}\n" in "\n".join(report.lines())
    assert other.to_dict()["evaluated"] == "other.csv"


def test_report_with_context_and_with_zero_density() -> None:
    class Bounded(GaussianFlow):
        def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return super().log_prob(x, context).masked_fill(x[..., 0] > 1.5, -math.inf)

    x = true_samples(90, 28)
    context = np.random.default_rng(29).standard_normal((90, 3))
    train, validation, test = (x[part] + context[part] for part in (slice(0, 40), slice(40, 60), slice(60, 90)))
    report = evaluate_flow(
        Bounded(LOC, SCALE),
        SplitRows(train, validation, test, (context[:40], context[40:60], context[60:])),
        columns=["a", "b", "c"],
        standardize_log_det=0.0,
    )
    assert report.baselines == []
    assert report.lines()[3] == "there are no baselines for a density that is conditioned on other columns"
    assert "better" not in report.lines()[0]
    assert report.samples is not None
    assert report.samples.rows == 30
    assert report.test.nll == math.inf
    assert report.to_dict()["test"] == {"nll": None, "se": None, "rows": 30, "non_finite": report.test.non_finite}
    assert report.latent is not None
    assert max(map(abs, report.latent.mean)) < 0.8  # ignoring the context would give the sum of two normal variables


def test_evaluation_leaves_random_states_alone_and_repeats() -> None:
    flow = GaussianFlow(LOC, SCALE)
    before, state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first, second = draw_samples(flow, 50, seed=1, batch_size=20), draw_samples(flow, 50, seed=1, batch_size=20)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first[:, 0])) == 50
    assert not np.array_equal(first, draw_samples(flow, 50, seed=2, batch_size=20))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("is_conditional", [False, True])
def test_samples_drawn_batch_by_batch_are_those_of_one_call(is_conditional: bool) -> None:
    """Whatever happens between the batches; and the full batches do not depend on the number of samples."""
    flow = GaussianFlow(LOC, SCALE)
    row = np.array([[1.0, 2.0, 3.0]])
    context = row if is_conditional else None
    expected = draw_samples(flow, 50, np.repeat(row, 50, axis=0) if is_conditional else None, seed=1, batch_size=20)
    batches = []
    for batch in sample_batches(flow, 50, context, seed=1, batch_size=20):
        state = torch.get_rng_state()
        torch.randn(7)
        batches.append(batch)
        assert not torch.equal(state, torch.get_rng_state())
    assert [len(batch) for batch in batches] == [20, 20, 10]
    assert np.array_equal(np.concatenate(batches), expected)
    # One random stream for all batches, as if nothing else used torch's generator.
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        drawn = [
            flow.sample((), torch.from_numpy(np.repeat(row, n, axis=0))) if is_conditional else flow.sample(n)
            for n in (20, 20, 10)
        ]
    assert np.array_equal(torch.cat(drawn).numpy(), expected)
    longer = draw_samples(flow, 70, context, seed=1, batch_size=20)
    assert np.array_equal(longer[:40], expected[:40])


@pytest.mark.parametrize("features", [1, 2])
def test_evaluate_a_real_flow(features: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = build("nsf-ar", features=features, layers=2, hidden=16).double()
    x = np.random.default_rng(30).standard_normal((120, features))
    report = evaluate_flow(
        flow, SplitRows(x[:60], x[60:80], x[80:]), columns=["a", "b"][:features], standardize_log_det=0.0, samples=200
    )
    assert report.log_det.error < 1e-8
    assert report.round_trip.points < 1e-6
    assert math.isfinite(report.test.nll)
    assert report.lines()


def test_json_safe_rejects_unknown_types() -> None:
    assert json_safe([np.float32(np.nan), Nll(1.0, math.inf, 2), {1: (np.bool_(True), None)}]) == [
        None,
        {"nll": 1.0, "se": None, "rows": 2, "non_finite": 0},
        {"1": [True, None]},
    ]
    with pytest.raises(TypeError, match="got object"):
        json_safe(object())


def test_log_prob_takes_read_only_reversed_and_integer_arrays() -> None:
    flow, x = GaussianFlow(LOC, SCALE), true_samples(6, 31)
    frozen = x.copy()
    frozen.flags.writeable = False
    assert torch.equal(log_prob(flow, frozen), log_prob(flow, x))
    assert torch.equal(log_prob(flow, x[::-1]), log_prob(flow, x).flip(0))
    assert log_prob(flow, np.ones((2, 3), dtype=int)).dtype == torch.float64


def test_inversion_is_measured_with_the_context_embedded() -> None:
    """The bijection takes the embedded context, which may have another size, or be far from the given one."""
    torch.manual_seed(0)
    inner: Any = build("nsf-c", 3, 4, layers=1, hidden=8).double()
    flow: Any = Flow(inner.base, inner.bijection, nn.Sequential(nn.Linear(1, 4), nn.Tanh())).double()
    x, context = true_samples(10, 23), np.full((10, 1), 1e3)
    trip, det = round_trip(flow, x, context, float32=True), log_det_error(flow, x, context, float32=True)
    assert trip.points < 1e-9
    assert det.error < 1e-9
    embedded = flow.embed(torch.from_numpy(context)).detach()
    assert trip.points == round_trip(inner, x, embedded).points
