"""Named targets: constants against quadrature, samples against densities, gradients, shapes."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.testing import assert_close

from pushforward.datasets import TARGETS, Target, load_target
from pushforward.datasets.targets.energies import U1, DoubleWells
from pushforward.datasets.targets.rejection import rejection_sample
from tests.fixtures.targets import draw, small_target

Array = NDArray[np.float64]

# A box that contains the distribution, as (low, high) of each coordinate.
PLANES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "u1": ((-6, 6), (-6, 6)),
    "u2": ((-4, 4), (-4, 4)),
    "u3": ((-4, 4), (-4, 4)),
    "u4": ((-4, 4), (-4, 4)),
    "double-well": ((-4, 4), (-8, 8)),
    "double-well-2": ((-6, 6), (-8, 8)),
    "banana": ((-75, 75), (-180, 14)),
}


def nodes(low: float, high: float, cells: int) -> tuple[Array, Array]:
    """Return nodes and weights of a ten-point Gauss-Legendre rule in every cell, shapes (cells, 10)."""
    x, w = np.polynomial.legendre.leggauss(10)
    half = (high - low) / cells / 2
    centres = low + half * (2 * np.arange(cells) + 1)
    return centres[:, None] + half * x, np.broadcast_to(half * w, (cells, 10))


def cell_masses(target: Target, box: tuple[tuple[float, float], tuple[float, float]], cells: int) -> Array:
    """Return integrals of p and p log p, p unnormalised, over the cells of a grid, (2, cells, cells)."""
    (x, wx), (y, wy) = (nodes(*side, cells) for side in box)
    grid = np.stack(np.meshgrid(x.ravel(), y.ravel(), indexing="ij"), -1)
    log_p = target.log_prob(torch.from_numpy(grid)).numpy()
    p = np.exp(log_p) * np.outer(wx.ravel(), wy.ravel())
    parts = np.stack([p, p * log_p]).reshape(2, cells, 10, cells, 10)
    return np.asarray(parts.sum((2, 4)))


@pytest.mark.parametrize("name", PLANES)
def test_log_z_and_entropy_to_their_last_digit(name: str) -> None:
    target = load_target(name)
    total, energy = cell_masses(target, PLANES[name], 150 if name == "banana" else 80).sum((1, 2))
    assert math.log(total) == pytest.approx(target.log_z, abs=1e-9)
    assert math.log(total) - energy / total == pytest.approx(target.entropy, abs=1e-9)


def test_many_well_is_a_product_of_double_wells() -> None:
    well, many = load_target("double-well"), load_target("many-well")
    assert well.log_z is not None
    assert well.entropy is not None
    assert many.features == 32
    assert many.log_z == pytest.approx(16 * well.log_z, abs=1e-12)
    assert many.entropy == pytest.approx(16 * well.entropy, abs=1e-12)
    assert many.log_z == pytest.approx(164.695675313182, abs=5e-10)
    x = torch.randn(7, 32, dtype=torch.float64)
    assert_close(many.log_prob(x), well.log_prob(x.reshape(7, 16, 2)).sum(-1))


def test_double_wells_against_the_formula() -> None:
    x = torch.tensor([1.5, -0.5], dtype=torch.float64)
    assert load_target("double-well").log_prob(x).item() == pytest.approx(-(1.5**4 - 6 * 1.5**2 - 0.75 + 0.125))
    assert load_target("double-well-2").log_prob(x).item() == pytest.approx(-(1.5**4 / 4 - 3 * 1.5**2 + 1.5 + 0.125))


def test_u1_to_u4_against_the_formulas() -> None:
    a, b = 0.7, -1.3

    def bump(away: float, width: float) -> float:
        return math.exp(-0.5 * (away / width) ** 2)

    sine = math.sin(math.pi * a / 2)
    split = 3 / (1 + math.exp(-(a - 1) / 0.3))
    expected = {
        "u1": bump(math.hypot(a, b) - 2, 0.4) * (bump(a - 2, 0.6) + bump(a + 2, 0.6)),
        "u2": bump(b - sine, 0.4),
        "u3": bump(b - sine, 0.35) + bump(b - sine + 3 * bump(a - 1, 0.6), 0.35),
        "u4": bump(b - sine, 0.4) + bump(b - sine + split, 0.35),
    }
    x = torch.tensor([a, b], dtype=torch.float64)
    for name, value in expected.items():
        assert load_target(name).log_prob(x).item() == pytest.approx(math.log(value), rel=1e-12), name


def test_gaussian_chain_is_a_multivariate_normal() -> None:
    target = load_target("gaussian", 5)
    places = torch.arange(5, dtype=torch.float64)
    expected = MultivariateNormal(torch.zeros(5, dtype=torch.float64), 0.9 ** (places[:, None] - places).abs())
    assert target.log_z is not None
    assert_close(target.log_prob(x := torch.randn(9, 5, dtype=torch.float64)) - target.log_z, expected.log_prob(x))
    assert target.entropy == pytest.approx(expected.entropy().item(), abs=1e-12)
    assert load_target("gaussian", 1).log_z == pytest.approx(0.5 * math.log(2 * math.pi))


def test_gaussian_mixture_is_the_sum_over_its_corners() -> None:
    target = load_target("gaussian-mixture", 3)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    expected = MixtureSameFamily(
        Categorical(torch.ones(8, dtype=torch.float64)),
        MultivariateNormal(corners, 0.5 * torch.eye(3, dtype=torch.float64)),
    )
    x = 2 * torch.randn(9, 3, dtype=torch.float64)
    assert_close(target.log_prob(x), expected.log_prob(x))
    one = load_target("gaussian-mixture", 1)

    def minus_p_log_p(u: float) -> float:
        log_p = one.log_prob(torch.tensor([u], dtype=torch.float64)).item()
        return -math.exp(log_p) * log_p

    assert integrate.quad(minus_p_log_p, -10, 10, epsabs=1e-11)[0] == pytest.approx(one.entropy, abs=1e-9)
    assert target.entropy == pytest.approx(3 * 1.572437, abs=3e-6)


def test_funnel_is_a_product_of_conditional_normals() -> None:
    target = load_target("funnel")
    x = draw(target)
    v = x[:, 0]
    others = Normal(0.0, torch.exp(v / 2)[:, None]).log_prob(x[:, 1:]).sum(-1)
    assert_close(target.log_prob(x), Normal(0.0, 3.0).log_prob(v) + others)
    # H = H(v) + E[H(others | v)], and E[v] = 0.
    assert target.entropy == pytest.approx(5 * (1 + math.log(2 * math.pi)) + math.log(3), abs=1e-12)


def test_banana_of_more_features() -> None:
    target, plane = load_target("banana", 4), load_target("banana")
    x = draw(target)
    assert_close(target.log_prob(x), plane.log_prob(x[:, :2]) + Normal(0.0, 1.0).log_prob(x[:, 2:]).sum(-1))
    assert plane.entropy is not None
    assert target.entropy == pytest.approx(plane.entropy + 1 + math.log(2 * math.pi), abs=1e-12)


@pytest.mark.parametrize("name", TARGETS)
def test_samples_have_the_stated_entropy(name: str) -> None:
    target = load_target(name)
    x = target.sample(20_000, seed=7)
    assert x is not None
    assert target.has_samples
    assert target.log_z is not None
    nll = target.log_z - target.log_prob(x)
    assert nll.mean().item() == pytest.approx(target.entropy, abs=4 * nll.std().item() / math.sqrt(20_000))
    # The spread, at which flows start, is the scale of the samples.
    assert 0.5 < x.square().median(0).values.max().sqrt().item() / target.spread < 2


@pytest.mark.parametrize("name", [name for name in PLANES if name != "banana"])
def test_samples_follow_the_density(name: str) -> None:
    n, cells = 50_000, 24
    target = load_target(name)
    assert target.log_z is not None
    masses = cell_masses(target, PLANES[name], cells)[0]
    x = target.sample(n, seed=11)
    assert x is not None
    edges = [np.linspace(low, high, cells + 1) for low, high in PLANES[name]]
    observed = np.histogram2d(x[:, 0].numpy(), x[:, 1].numpy(), bins=edges)[0]
    assert observed.sum() == n
    expected = n * masses / masses.sum()
    many = expected >= 5
    statistic = ((observed - expected)[many] ** 2 / expected[many]).sum()
    rest = n - expected[many].sum()
    if rest > 5:
        statistic += (n - observed[many].sum() - rest) ** 2 / rest
    assert stats.chi2.sf(statistic, many.sum()) > 1e-4


def untwisted(name: str, x: Tensor) -> Tensor:
    """Return the independent standard normals that samples were made from."""
    if name == "gaussian":
        places = torch.arange(x.shape[1], dtype=torch.float64)
        factor = torch.linalg.cholesky(0.9 ** (places[:, None] - places).abs())
        noise: Tensor = torch.linalg.inv(factor) @ x.T
        return noise.T
    if name == "funnel":
        return torch.cat([x[:, :1] / 3, x[:, 1:] * torch.exp(-x[:, :1] / 2)], -1)
    assert name == "banana"
    return torch.stack([x[:, 0] / 10, x[:, 1] + 0.03 * (x[:, 0] ** 2 - 100)], -1)


@pytest.mark.parametrize("name", ["gaussian", "funnel", "banana"])
def test_samples_untwist_to_independent_normals(name: str) -> None:
    x = small_target(name).sample(20_000, seed=13)
    assert x is not None
    noise = untwisted(name, x)
    for column in noise.unbind(-1):
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    off = torch.corrcoef(noise.T).fill_diagonal_(0).abs().max().item()
    assert off < 4.5 / math.sqrt(20_000)


def test_mixture_samples_visit_all_corners_equally() -> None:
    x = load_target("gaussian-mixture", 4).sample(32_000, seed=17)
    assert x is not None
    counts = torch.bincount(((x > 0) * torch.tensor([8, 4, 2, 1])).sum(-1), minlength=16)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    cdf = lambda u: 0.5 * sum(stats.norm.cdf(u, at, math.sqrt(0.5)) for at in (-1, 1))  # noqa: E731
    assert stats.kstest(x.flatten().numpy(), cdf).pvalue > 1e-4


def test_wells_of_many_well_are_independent() -> None:
    x = load_target("many-well", 8).sample(20_000, seed=19)
    assert x is not None
    assert torch.corrcoef(x.T).fill_diagonal_(0).abs().max().item() < 4.5 / math.sqrt(20_000)
    right = (x[:, 0::2] > 0).double()
    mass = [integrate.quad(lambda u: math.exp(-(u**4) + 6 * u**2 + u / 2), *side)[0] for side in ((-6, 0), (0, 6))]
    share = mass[1] / sum(mass)
    assert_close(
        right.mean(0), torch.full((4,), share).double(), rtol=0, atol=4.5 * math.sqrt(share * (1 - share) / 20_000)
    )


@pytest.mark.parametrize("name", TARGETS)
def test_sampling_is_seeded_and_typed(name: str) -> None:
    target = small_target(name)
    before = torch.random.get_rng_state()
    first, again, other = (target.sample(50, seed) for seed in (3, 3, 4))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (first.shape, first.dtype) == ((50, target.features), torch.float64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    none = target.sample(0, seed=0)
    assert none is not None
    assert none.shape == (0, target.features)


@pytest.mark.parametrize("name", ["double-well", "double-well-2"])
def test_the_log_ratio_of_double_wells_is_bounded(name: str) -> None:
    target = load_target(name)
    assert isinstance(target, DoubleWells)
    # Points between those of the grid that the bound was computed on, and far beyond.
    far = torch.logspace(0.9, 6, 1000, dtype=torch.float64)
    u = torch.cat([torch.linspace(-8, 8, 400_003, dtype=torch.float64), far, -far])
    assert target.log_ratio(u).max().item() < target.log_ratio_bound
    accepted = target.log_ratio(target.propose(100_000, torch.Generator().manual_seed(0))) - target.log_ratio_bound
    assert accepted.exp().mean().item() > 0.5


def test_a_proposal_above_the_bound_is_an_error() -> None:
    def propose(k: int, generator: torch.Generator) -> Tensor:
        return torch.rand(k, dtype=torch.float64, generator=generator)

    with pytest.raises(RuntimeError, match=r"rejection_sample: expected a log-ratio of at most 0\.5; got"):
        rejection_sample(propose, lambda x: x, 0.5, 10, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TARGETS)
def test_score_function_is_the_gradient(name: str) -> None:
    target = small_target(name)
    x = draw(target)
    score = target.score_function(x)
    assert not score.requires_grad
    step = 1e-5 * torch.eye(target.features, dtype=torch.float64)
    ahead, behind = (target.log_prob(x[:, None] + sign * step) for sign in (1, -1))
    assert_close(score, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(target.score_function(x), score)


@pytest.mark.parametrize("name", TARGETS)
def test_shapes_dtypes_and_transforms(name: str) -> None:
    target = small_target(name)
    x = draw(target, 6)
    together = target.log_prob(x)
    assert_close(target.log_prob(x.reshape(2, 3, -1)), together.reshape(2, 3))
    assert target.log_prob(x[0]).shape == ()
    assert target.log_prob(x[:0]).shape == (0,)
    assert_close(torch.func.vmap(target.log_prob)(x), together)
    assert_close(torch.func.vmap(torch.func.grad(target.log_prob))(x), target.score_function(x))
    assert target.log_prob(x.float()).dtype == target.score_function(x.float()).dtype == torch.float32
    assert_close(target.log_prob(x.float()).double(), together, rtol=1e-4, atol=1e-4)
    assert target.log_prob(torch.full((target.features,), math.nan)).isnan()
    compiled = torch.compile(target.log_prob, fullgraph=True, backend="eager")
    assert_close(compiled(x), together)


@pytest.mark.parametrize("name", ["u2", "u3", "u4"])
def test_zero_density_outside_of_the_box(name: str) -> None:
    target = load_target(name)
    assert target.bounds == (-4, 4)
    outside = torch.tensor([[4.01, 0.0], [0.0, -4.01], [1e30, -1e30], [math.inf, 0.0]])
    assert (target.log_prob(outside) == -math.inf).all()
    assert (target.score_function(outside) == 0).all()
    assert target.log_prob(torch.tensor([[4.0, -4.0], [-4.0, 4.0]])).isfinite().all()


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_are_finite_at_the_origin_and_far_out(name: str) -> None:
    target = small_target(name)
    x = torch.cat([torch.zeros(1, target.features), torch.eye(target.features), 50 * torch.eye(target.features)])
    assert target.score_function(x).isfinite().all()
    assert U1().score_function(torch.zeros(2)).tolist() == [0, 0]
