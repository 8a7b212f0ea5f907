"""The densities of the toys integrate to one, have the stated entropy, and match the samples."""

import functools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pushforward.common.errors import DataError
from pushforward.datasets import TOYS, load, names

Array = NDArray[np.float64]

# Half-widths (x1, x2) of a box around the distribution, and a grid step of about half its finest scale; 8 cells make
# one bin of the comparison with samples.
BOXES: dict[str, tuple[float, float, float]] = {
    "checkerboard": (4.8, 4.8, 0.1),
    "8gaussians": (5.6, 5.6, 0.1),
    "rings": (3.84, 3.84, 0.04),
    "circles": (5.6, 5.6, 0.1),
    "moons": (4.8, 4.8, 0.08),
    "2spirals": (4.4, 4.4, 0.05),
    "swissroll": (4.8, 4.8, 0.08),
    "pinwheel": (5.2, 5.2, 0.05),
    "gaussian": (6.4, 4.0, 0.1),
    "crescent": (24.0, 6.4, 0.1),
    "crescent-cubed": (72.0, 6.4, 0.1),
    "sine-wave": (6.4, 4.0, 0.05),
    "abs": (6.4, 8.0, 0.05),
    "sign": (6.4, 8.0, 0.05),
    "diamond": (4.0, 4.0, 0.02),
    "four-circles": (3.84, 3.84, 0.04),
}


@functools.cache
def grid(name: str, finer: float = 1.0) -> tuple[Array, float]:
    """Return log-densities at the centres of the cells of a grid, shape (columns, rows), and the area of a cell."""
    width, height, step = BOXES[name]
    shape = [8 * round(2 * side / (8 * step / finer)) for side in (width, height)]
    axes = [-side + 2 * side / n * (np.arange(n) + 0.5) for side, n in zip((width, height), shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return TOYS[name].log_prob(points.astype(np.float64)).reshape(shape), 4 * width * height / math.prod(shape)


def mass_and_entropy(name: str, finer: float = 1.0) -> tuple[float, float]:
    log_prob, area = grid(name, finer)
    p = np.exp(log_prob)
    return float(p.sum() * area), float(-(p * np.where(p > 0, log_prob, 0)).sum() * area)


def test_every_toy_has_a_box() -> None:
    assert list(BOXES) == list(TOYS)


@pytest.mark.parametrize("name", BOXES)
def test_density_integrates_to_one_and_has_the_stated_entropy(name: str) -> None:
    mass, entropy = mass_and_entropy(name)
    # The midpoint rule is exact to rounding for such smooth densities; the error is the mass outside the box.
    assert mass == pytest.approx(1, abs=2e-6)
    assert entropy == pytest.approx(TOYS[name].entropy, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOXES)
def test_entropy_to_its_last_digit(name: str) -> None:
    toy = TOYS[name]
    _, entropy = mass_and_entropy(name, finer=2.0)
    rounding = 5.5e-7 if round(toy.entropy, 6) == toy.entropy else 0.0  # closed forms have all their digits
    assert entropy == pytest.approx(toy.entropy, abs=rounding + 1e-7)


@pytest.mark.parametrize("name", BOXES)
def test_samples_have_the_stated_entropy(name: str) -> None:
    toy = TOYS[name]
    log_prob = toy.log_prob(toy.sample(20_000, np.random.default_rng(7)))
    assert np.isfinite(log_prob).all()
    assert -log_prob.mean() == pytest.approx(toy.entropy, abs=4 * log_prob.std() / math.sqrt(20_000) + 1e-9)


@pytest.mark.parametrize("name", BOXES)
def test_samples_follow_the_density(name: str) -> None:
    from scipy import stats

    n = 50_000
    log_prob, area = grid(name)
    blocks = np.exp(log_prob).reshape(log_prob.shape[0] // 8, 8, log_prob.shape[1] // 8, 8)
    expected = n * area * blocks.sum(axis=(1, 3))
    width, height, _ = BOXES[name]
    edges = [np.linspace(-side, side, k + 1) for side, k in zip((width, height), expected.shape, strict=True)]
    x = TOYS[name].sample(n, np.random.default_rng(11))
    observed, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=edges)
    # Bins with few expected samples are merged, so that the statistic has a chi-squared distribution.
    many = expected >= 5
    rest = n - expected[many].sum()
    assert rest > -1e-3 * n
    statistic = ((observed[many] - expected[many]) ** 2 / expected[many]).sum()
    if rest > 5:
        statistic += (n - observed[many].sum() - rest) ** 2 / rest
    assert stats.chi2.sf(statistic, many.sum()) > 1e-4


@pytest.mark.parametrize("name", BOXES)
def test_sampling_is_seeded_and_typed(name: str) -> None:
    toy = TOYS[name]
    first, again = (toy.sample(100, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (100, 2)
    assert first.dtype == np.float64
    assert np.array_equal(first, again)
    assert not np.array_equal(first, toy.sample(100, np.random.default_rng(4)))
    assert toy.sample(0, np.random.default_rng(0)).shape == (0, 2)
    assert toy.log_prob(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("name", BOXES)
def test_density_far_out_and_at_non_finite_points(name: str) -> None:
    far = np.array([[40.0, -70.0], [1e6, 1e6], [1e200, 0.0], [np.inf, 0.0], [np.nan, 0.0], [0.0, 0.0]])
    log_prob = TOYS[name].log_prob(far)
    assert (log_prob[:2] < -20).all()
    assert (log_prob[2:4] == -np.inf).all()
    assert np.isnan(log_prob[4])
    assert not np.isnan(log_prob[5])


@pytest.mark.parametrize("name", BOXES)
def test_density_does_not_depend_on_the_batch(name: str) -> None:
    x = TOYS[name].sample(300, np.random.default_rng(5))
    together = TOYS[name].log_prob(x)
    alone = np.concatenate([TOYS[name].log_prob(point[None]) for point in x[:20]])
    # Each point is summed over the nodes near its cell; the terms left out are below rounding.
    np.testing.assert_allclose(together[:20], alone, rtol=0, atol=1e-12)


def test_density_of_a_curve_equals_a_direct_sum() -> None:
    t = math.pi * (np.arange(20_000) + 0.5) / 20_000
    outer = np.stack([2 * np.cos(t) - 1, 2 * np.sin(t) - 0.2], axis=1)
    inner = np.stack([1 - 2 * np.cos(t), 0.8 - 2 * np.sin(t)], axis=1)
    centres = np.concatenate([outer, inner])
    x = TOYS["moons"].sample(50, np.random.default_rng(0))
    squares = ((x[:, None] - centres) ** 2).sum(axis=-1)
    direct = np.log(np.exp(-squares / 0.08).mean(axis=1) / (2 * math.pi * 0.04))
    np.testing.assert_allclose(TOYS["moons"].log_prob(x), direct, rtol=0, atol=1e-6)


def test_checkerboard_is_uniform_on_the_even_squares() -> None:
    x = np.array([[-3.9, -3.9], [-3.9, -1.9], [0.1, 0.1], [0.1, 2.1], [3.9, 3.9], [4.1, 4.1]])
    inside = -math.log(32)
    assert TOYS["checkerboard"].log_prob(x).tolist() == [inside, -np.inf, inside, -np.inf, inside, -np.inf]


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 2, 2)])
def test_points_must_have_two_coordinates(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected points of shape \(n, 2\); got \("):
        TOYS["moons"].log_prob(np.zeros(shape))


def test_loading_a_toy() -> None:
    dataset = load("four_circles", rows=500, seed=1)
    assert dataset.name == "four-circles"
    assert (dataset.rows.shape, dataset.context.shape) == ((500, 2), (500, 0))
    assert dataset.schema.names == ("x1", "x2")
    assert dataset.toy is TOYS["four-circles"]
    assert dataset.sha256 is None
    assert dataset.notes == ()
    assert [(c.step, c.tied) for c in dataset.schema.columns] == [(None, False)] * 2
    assert np.array_equal(dataset.rows, load("four-circles", rows=500, seed=1).rows)
    assert not np.array_equal(dataset.rows, load("four-circles", rows=500, seed=2).rows)


def test_conditioning_on_a_column_of_a_toy_drops_its_true_density() -> None:
    dataset = load("moons", rows=50, context=["x1"])
    assert (dataset.rows.shape, dataset.context.shape) == ((50, 1), (50, 1))
    assert (dataset.schema.names, dataset.schema.context_names) == (("x2",), ("x1",))
    assert dataset.toy is None


@pytest.mark.parametrize("name", ["line", "cos"])
def test_curves_without_noise_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: .* no density in the plane; choose another toy"):
        load(name)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"unknown dataset 'mooons'; did you mean 'moons'\? see `pushforward datasets`, or"
    ):
        load("mooons")


def test_names_lists_sizes_without_loading() -> None:
    entries = {entry.name: entry for entry in names()}
    assert set(TOYS) < set(entries)
    assert entries["moons"][1:4] == ("toy", 250_000, 2)
    for name in ("wine", "breast-cancer", "iris", "digits"):
        dataset = load(name)
        assert dataset.rows.shape == (entries[name].rows, entries[name].columns)
    assert "pixel_0_0, pixel_4_0, pixel_4_7" in "".join(load("digits").notes)
    assert load("breast_cancer").name == "breast-cancer"
