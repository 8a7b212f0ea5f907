"""Targets: constants against quadrature, samples against densities, what is loaded, and what is complained of."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.testing import assert_close

from pushforward.common.errors import DataError
from pushforward.datasets import TARGETS, FunctionTarget, Target, TargetError, check_target, load, load_target, names
from pushforward.datasets.targets.energies import U1, DoubleWells
from pushforward.datasets.targets.load import targets
from pushforward.datasets.targets.rejection import rejection_sample

Array = NDArray[np.float64]
Function = Callable[[Tensor], Tensor]

# The box that holds the law, as (low, high) a coordinate.
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
    """Points and weights of a ten-point Gauss-Legendre rule in every cell, shapes (cells, 10)."""
    x, w = np.polynomial.legendre.leggauss(10)
    half = (high - low) / cells / 2
    centres = low + half * (2 * np.arange(cells) + 1)
    return centres[:, None] + half * x, np.broadcast_to(half * w, (cells, 10))


def cell_masses(target: Target, box: tuple[tuple[float, float], tuple[float, float]], cells: int) -> Array:
    """Integrals of p and of p log p over a grid's cells, for the unnormalised p, (2, cells, cells)."""
    (x, wx), (y, wy) = (nodes(*side, cells) for side in box)
    grid = np.stack(np.meshgrid(x.ravel(), y.ravel(), indexing="ij"), -1)
    log_p = target.log_prob(torch.from_numpy(grid)).numpy()
    p = np.exp(log_p) * np.outer(wx.ravel(), wy.ravel())
    parts = np.stack([p, p * log_p]).reshape(2, cells, 10, cells, 10)
    return np.asarray(parts.sum((2, 4)))


def some_points(target: Target, n: int = 20) -> Tensor:
    x = target.sample(n, seed=5)
    assert x is not None
    return x


def of(name: str) -> Target:
    """A small one."""
    return load_target(f"target:{name}", {"many-well": 6, "gaussian": 4, "gaussian-mixture": 3, "funnel": 4}.get(name))


# ---- constants


@pytest.mark.parametrize("name", PLANES)
def test_log_z_and_entropy_to_their_last_digit(name: str) -> None:
    target = load_target(name)
    total, energy = cell_masses(target, PLANES[name], 150 if name == "banana" else 80).sum((1, 2))
    assert math.log(total) == pytest.approx(target.log_z, abs=1e-9)
    assert math.log(total) - energy / total == pytest.approx(target.entropy, abs=1e-9)


def test_many_well_is_so_many_double_wells() -> None:
    well, many = load_target("double-well"), load_target("many-well")
    assert well.log_z is not None
    assert well.entropy is not None
    assert many.features == 32
    assert many.log_z == pytest.approx(16 * well.log_z, abs=1e-12)
    assert many.entropy == pytest.approx(16 * well.entropy, abs=1e-12)
    assert many.log_z == pytest.approx(164.695675313182, abs=5e-10)
    x = torch.randn(7, 32, dtype=torch.float64)
    assert_close(many.log_prob(x), well.log_prob(x.reshape(7, 16, 2)).sum(-1))


def test_double_wells_by_hand() -> None:
    x = torch.tensor([1.5, -0.5], dtype=torch.float64)
    assert load_target("double-well").log_prob(x).item() == pytest.approx(-(1.5**4 - 6 * 1.5**2 - 0.75 + 0.125))
    assert load_target("double-well-2").log_prob(x).item() == pytest.approx(-(1.5**4 / 4 - 3 * 1.5**2 + 1.5 + 0.125))


def test_rezende_mohamed_energies_by_hand() -> None:
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
    law = MultivariateNormal(torch.zeros(5, dtype=torch.float64), 0.9 ** (places[:, None] - places).abs())
    assert target.log_z is not None
    assert_close(target.log_prob(x := torch.randn(9, 5, dtype=torch.float64)) - target.log_z, law.log_prob(x))
    assert target.entropy == pytest.approx(law.entropy().item(), abs=1e-12)
    assert load_target("gaussian", 1).log_z == pytest.approx(0.5 * math.log(2 * math.pi))


def test_gaussian_mixture_is_the_sum_over_its_corners() -> None:
    target = load_target("gaussian-mixture", 3)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    law = MixtureSameFamily(
        Categorical(torch.ones(8, dtype=torch.float64)),
        MultivariateNormal(corners, 0.5 * torch.eye(3, dtype=torch.float64)),
    )
    x = 2 * torch.randn(9, 3, dtype=torch.float64)
    assert_close(target.log_prob(x), law.log_prob(x))
    one = load_target("gaussian-mixture", 1)

    def surprise(u: float) -> float:
        log_p = one.log_prob(torch.tensor([u], dtype=torch.float64)).item()
        return -math.exp(log_p) * log_p

    assert integrate.quad(surprise, -10, 10, epsabs=1e-11)[0] == pytest.approx(one.entropy, abs=1e-9)
    assert target.entropy == pytest.approx(3 * 1.572437, abs=3e-6)


def test_funnel_is_normals_given_a_normal() -> None:
    target = load_target("funnel")
    x = some_points(target)
    v = x[:, 0]
    others = Normal(0.0, torch.exp(v / 2)[:, None]).log_prob(x[:, 1:]).sum(-1)
    assert_close(target.log_prob(x), Normal(0.0, 3.0).log_prob(v) + others)
    # H = H(v) + E[H(others | v)], and E[v] = 0.
    assert target.entropy == pytest.approx(5 * (1 + math.log(2 * math.pi)) + math.log(3), abs=1e-12)


def test_banana_of_more_features() -> None:
    target, plane = load_target("banana", 4), load_target("banana")
    x = some_points(target)
    assert_close(target.log_prob(x), plane.log_prob(x[:, :2]) + Normal(0.0, 1.0).log_prob(x[:, 2:]).sum(-1))
    assert plane.entropy is not None
    assert target.entropy == pytest.approx(plane.entropy + 1 + math.log(2 * math.pi), abs=1e-12)


# ---- samples


@pytest.mark.parametrize("name", TARGETS)
def test_samples_have_the_stated_entropy(name: str) -> None:
    target = load_target(name)
    x = target.sample(20_000, seed=7)
    assert x is not None
    assert target.has_samples
    assert target.log_z is not None
    surprise = target.log_z - target.log_prob(x)
    assert surprise.mean().item() == pytest.approx(target.entropy, abs=4 * surprise.std().item() / math.sqrt(20_000))
    # What a flow starts from has the law's size.
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
    """The independent standard normals that a sample was made of."""
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
    x = of(name).sample(20_000, seed=13)
    assert x is not None
    noise = untwisted(name, x)
    for column in noise.unbind(-1):
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    off = torch.corrcoef(noise.T).fill_diagonal_(0).abs().max().item()
    assert off < 4.5 / math.sqrt(20_000)


def test_mixture_samples_visit_every_corner_alike() -> None:
    x = load_target("gaussian-mixture", 4).sample(32_000, seed=17)
    assert x is not None
    counts = torch.bincount(((x > 0) * torch.tensor([8, 4, 2, 1])).sum(-1), minlength=16)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    cdf = lambda u: 0.5 * sum(stats.norm.cdf(u, at, math.sqrt(0.5)) for at in (-1, 1))  # noqa: E731
    assert stats.kstest(x.flatten().numpy(), cdf).pvalue > 1e-4


def test_wells_of_many_are_independent() -> None:
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
    target = of(name)
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
def test_the_proposal_of_a_well_covers_it(name: str) -> None:
    target = load_target(name)
    assert isinstance(target, DoubleWells)
    # Off the grid that the bound was found on, and far beyond it.
    far = torch.logspace(0.9, 6, 1000, dtype=torch.float64)
    u = torch.cat([torch.linspace(-8, 8, 400_003, dtype=torch.float64), far, -far])
    assert target._log_ratio(u).max().item() < target._bound
    accepted = target._log_ratio(target._propose(100_000, torch.Generator().manual_seed(0))) - target._bound
    assert accepted.exp().mean().item() > 0.5


def test_a_proposal_above_the_bound_is_an_error() -> None:
    def propose(k: int, generator: torch.Generator) -> Tensor:
        return torch.rand(k, dtype=torch.float64, generator=generator)

    with pytest.raises(RuntimeError, match=r"rejection_sample: expected a log-ratio of at most 0\.5; got"):
        rejection_sample(propose, lambda x: x, 0.5, 10, torch.Generator().manual_seed(0))


# ---- log-densities as functions


@pytest.mark.parametrize("name", TARGETS)
def test_force_is_the_gradient(name: str) -> None:
    target = of(name)
    x = some_points(target)
    force = target.force(x)
    assert not force.requires_grad
    step = 1e-5 * torch.eye(target.features, dtype=torch.float64)
    ahead, behind = (target.log_prob(x[:, None] + sign * step) for sign in (1, -1))
    assert_close(force, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(target.force(x), force)


@pytest.mark.parametrize("name", TARGETS)
def test_shapes_dtypes_and_transforms(name: str) -> None:
    target = of(name)
    x = some_points(target, 6)
    together = target.log_prob(x)
    assert_close(target.log_prob(x.reshape(2, 3, -1)), together.reshape(2, 3))
    assert target.log_prob(x[0]).shape == ()
    assert target.log_prob(x[:0]).shape == (0,)
    assert_close(torch.func.vmap(target.log_prob)(x), together)
    assert_close(torch.func.vmap(torch.func.grad(target.log_prob))(x), target.force(x))
    assert target.log_prob(x.float()).dtype == target.force(x.float()).dtype == torch.float32
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
    assert (target.force(outside) == 0).all()
    assert target.log_prob(torch.tensor([[4.0, -4.0], [-4.0, 4.0]])).isfinite().all()


@pytest.mark.parametrize("name", TARGETS)
def test_no_gradient_is_undefined(name: str) -> None:
    target = of(name)
    x = torch.cat([torch.zeros(1, target.features), torch.eye(target.features), 50 * torch.eye(target.features)])
    assert target.force(x).isfinite().all()
    assert U1().force(torch.zeros(2)).tolist() == [0, 0]


# ---- loading


def test_targets_are_listed() -> None:
    assert [entry.name for entry in targets()] == list(TARGETS)
    listed = {entry.name: entry for entry in names() if entry.kind == "target"}
    assert list(listed) == [f"target:{name}" for name in TARGETS]
    for source, entry in listed.items():
        target = load_target(source)
        assert (f"target:{target.name}", target.features, target.description) == (source, entry.columns, entry[-1])
        assert target.log_z is not None
        assert target.entropy is not None
        assert entry.rows is None


def test_names_as_people_type_them() -> None:
    assert load_target("target:Many_Well", 4).name == "many-well"
    assert load_target("u1", 2).name == "u1"


@pytest.mark.parametrize(
    ("source", "features", "message"),
    [
        (
            "target:funel",
            None,
            r"unknown target 'funel'; did you mean 'funnel'\? known: u1, .*banana; or target:MODULE:",
        ),
        ("target:", None, r"unknown target ''; known: u1"),
        ("target:u1", 3, r"target:u1: has 2 features; got 3"),
        ("target:many-well", 7, r"many-well: expected an even number of features; got 7"),
        ("target:funnel", 1, r"funnel: expected features of at least 2; got 1"),
        ("target:gaussian", 0, r"target:gaussian: expected features of at least 1; got 0"),
        ("target:nowhere:f", 2, r"target:nowhere:f: no module 'nowhere' in /.* nor among the installed ones"),
        ("target:math:", 2, r"target:math:: expected target:MODULE:FUNCTION"),
        ("target:math.nowhere:f", 2, r"'math' is not a package|no module 'math.nowhere'"),
        ("target:math:sqr", 2, r"target:math:sqr: .*math.* has no 'sqr'; did you mean 'sqrt'\?"),
        ("target:math:pi", 2, r"target:math:pi: expected a function or a Target; got float"),
        ("target:fractions:Fraction", 2, r"expected a function or a Target; got the class Fraction"),
        ("target:math:cos", None, r"target:math:cos: how many coordinates .* target\.features=D"),
    ],
)
def test_what_cannot_be_loaded(source: str, features: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_target(source, features)
    assert "\n" not in str(caught.value)


def test_bounds_belong_to_functions() -> None:
    with pytest.raises(DataError, match=r"target:u2: its bounds and spread are known"):
        load_target("target:u2", bounds=(-1.0, 1.0))


def test_a_target_has_no_rows() -> None:
    with pytest.raises(DataError, match="target:u1: is a log-density and has no rows; `pushforward fit target:u1`"):
        load("target:u1")
    with pytest.raises(DataError, match=r"unknown dataset 'funnel'; did you mean 'target:funnel'\?"):
        load("funnel")


MODULE = """
import torch
from own_constants import WIDTH
from pushforward.datasets import Target

def log_density(x):
    return -0.5 * (x / WIDTH).square().sum(-1)

def broken(x):
    raise ValueError(f"no good at\\n{len(x)} points")

class Fixed(Target):
    features = 3
    def log_prob(self, x):
        return -x.square().sum(-1)

class Told(Target):
    def __init__(self, features):
        self.features = features
    def log_prob(self, x):
        return -x.square().sum(-1)

ready = Told(4)
law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's, with modules, that is the current directory."""
    (tmp_path / "own_target.py").write_text(MODULE)
    (tmp_path / "own_constants.py").write_text("WIDTH = 2.0\n")
    (tmp_path / "own_bad.py").write_text("import own_missing\n")
    (tmp_path / "own_worse.py").write_text("def f(x)\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_target", "own_constants", "own_bad", "own_worse", "own_exit"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_function_of_the_user(here: Path) -> None:
    path = list(sys.path)
    target = load_target("target:own_target:log_density", 3)
    assert sys.path == path
    assert (target.name, target.features, target.log_z, target.bounds) == ("own_target:log_density", 3, None, None)
    assert not target.has_samples
    assert target.sample(3, seed=0) is None
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    assert_close(target.log_prob(x), -x.square().sum(-1) / 8)
    assert_close(target.force(x), -x / 4)
    assert_close(torch.func.vmap(torch.func.vmap(target.log_prob))(x), -x.square().sum(-1) / 8)
    assert_close(torch.compile(target.log_prob, fullgraph=True, backend="eager")(x), -x.square().sum(-1) / 8)
    law = load_target("target:own_target:law.log_prob", 2)
    assert_close(law.log_prob(x[..., :2].float()), -x[..., :2].float().square().sum(-1) / 2 - math.log(2 * math.pi))
    boxed = load_target("target:own_target:log_density", 3, bounds=(-1.0, 1.0), spread=0.5)
    assert boxed.spread == 0.5
    assert (boxed.log_prob(x) == -math.inf).equal((x.abs() > 1).any(-1))


def test_targets_of_the_user(here: Path) -> None:
    assert load_target("target:own_target:Fixed").features == 3
    assert load_target("target:own_target:Fixed", 3).name == "Fixed"
    assert load_target("target:own_target:Told", 5).features == 5
    ready = load_target("target:own_target:ready")
    assert ready is sys.modules["own_target"].ready
    for source, features, message in (
        ("ready", 3, "target:own_target:ready: has 4 features; got 3"),
        ("Fixed", 2, "target:own_target:Fixed: has 3 features; got 2"),
        ("Told", None, "target:own_target:Told: building it raised TypeError: .*features"),
        ("Target", None, "target:own_target:Target: building it raised TypeError: .*abstract"),
        ("law.logprob", 2, r"target:own_target:law\.logprob: law has no 'logprob'; did you mean 'log_prob'\?"),
        ("log_densty", 2, r"own_target\.py has no 'log_densty'; did you mean 'log_density'\?"),
    ):
        with pytest.raises(DataError, match=message):
            load_target(f"target:own_target:{source}", features)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("own_bad", "importing own_bad raised ModuleNotFoundError: No module named 'own_missing'"),
        ("own_worse", r"importing own_worse raised SyntaxError: expected ':' \(own_worse\.py, line 1\)"),
        ("own_exit", "importing own_exit raised SystemExit: 3"),
    ],
)
def test_modules_that_cannot_be_imported(here: Path, module: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_target(f"target:{module}:f", 2)
    assert str(here) not in sys.path


def test_what_a_function_raises_is_told_in_a_line(here: Path) -> None:
    target = load_target("target:own_target:broken", 2)
    with pytest.raises(
        TargetError,
        match=r"^own_target:broken: computing its log-density raised ValueError: no good at 3 points$",
    ):
        target.log_prob(torch.zeros(3, 2))


# ---- checking


def student(x: Tensor, degrees: float = 1.0) -> Tensor:
    return -0.5 * (degrees + x.shape[-1]) * torch.log1p(x.square().sum(-1) / degrees)


def flat_box(x: Tensor) -> Tensor:
    return torch.where((x.abs() > 3).any(-1), -torch.inf, 0.0)


PROPER: dict[str, tuple[Function, int]] = {
    "normal": (lambda x: -0.5 * x.square().sum(-1), 3),
    "shifted": (lambda x: -0.5 * (x - 40).square().sum(-1), 3),
    "wide": (lambda x: -0.5 * (x / 1000).square().sum(-1), 3),
    "narrow": (lambda x: -0.5 * (x / 1e-3).square().sum(-1), 3),
    "student 1": (student, 1),
    "student 2": (student, 2),
    "student 20": (student, 20),
    "student 1/2": (lambda x: student(x, 0.5), 1),
    "independent Cauchys": (lambda x: -torch.log1p(x.square()).sum(-1), 8),
    "wide Cauchys": (lambda x: -torch.log1p((x / 300).square()).sum(-1), 2),
    "Laplace": (lambda x: -x.abs().sum(-1), 2),
    "flat box": (flat_box, 2),
    "flat box with a graph": (lambda x: flat_box(x) + 0 * x.sum(-1), 2),
    "half-line": (lambda x: torch.where(x > 0, -x, -torch.inf).sum(-1), 2),
    "big constant": (lambda x: 1e6 - x.square().sum(-1), 2),
}


@pytest.mark.parametrize("name", PROPER)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_proper_targets_pass(name: str, scale: float) -> None:
    function, features = PROPER[name]
    check_target(FunctionTarget(function, features), scale * torch.randn(64, features).abs())


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("name", TARGETS)
def test_all_of_ours_pass(name: str, scale: float) -> None:
    for target in (of(name), load_target(name)):
        for dtype in (torch.float32, torch.float64):
            check_target(target, scale * target.spread * torch.randn(64, target.features, dtype=dtype))


def test_a_funnel_of_many_features_passes() -> None:
    check_target(load_target("funnel", 200), torch.randn(64, 200))


def unboxed(name: str) -> Function:
    """U2, U3 or U4 without their box: a band that goes on for ever."""
    target: Any = load_target(name)
    return lambda x: target._bands(x[..., 0], x[..., 1])


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    ("function", "features"),
    [
        pytest.param(unboxed("u2"), 2, id="u2"),
        pytest.param(unboxed("u3"), 2, id="u3"),
        pytest.param(unboxed("u4"), 2, id="u4"),
        pytest.param(lambda x: 0 * x.sum(-1), 2, id="constant"),
        pytest.param(lambda x: x.sum(-1), 3, id="linear"),
        pytest.param(lambda x: x.square().sum(-1), 3, id="sign"),
        pytest.param(lambda x: x.pow(4).sum(-1).exp(), 3, id="overflows"),
        pytest.param(lambda x: -x[..., :2].square().sum(-1), 5, id="a coordinate forgotten"),
        pytest.param(lambda x: -0.1 * torch.log1p(x.square().sum(-1)), 2, id="a tail too heavy"),
    ],
)
def test_what_does_not_decay_is_told(function: Function, features: int, scale: float) -> None:
    x = (scale * torch.randn(64, features)).clamp(-2, 2)
    with pytest.raises(TargetError, match=r"no finite integral: .* as far out as \[.*target.bounds=low,high"):
        check_target(FunctionTarget(function, features), x)
    check_target(FunctionTarget(function, features, bounds=(-3.0, 3.0)), x)


def without_graph(x: Tensor) -> Tensor:
    return torch.from_numpy(-(x.detach().numpy() ** 2).sum(-1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x[:, 0] - 1).log() - x.square().sum(-1), r"below \+inf; got nan at \[0, 0, 0\] \(2 of 3 points\)"),
        (lambda x: -x[:, 0].log() - x.square().sum(-1), r"below \+inf; got inf at \[0, 0, 0\] \(1 of 3"),
        (lambda x: x.sum(), r"f: expected log-densities of shape \(3,\) for points of shape \(3, 3\); got \(\)"),
        (lambda x: -x, r"expected log-densities of shape \(3,\) for points of shape \(3, 3\); got \(3, 3\)"),
        (lambda x: -x.sum(-1, keepdim=True), r"of shape \(3,\) .* got \(3, 1\)"),
        (lambda x: 1.5, r"f: expected a torch tensor; got float"),
        (
            lambda x: x.sum(-1).long(),
            r"expected log-densities of a floating dtype such as torch\.float32; got torch\.int64",
        ),
        (lambda x: x.sum(-1) + 1j, r"of a floating dtype such as torch\.float32; got torch\.complex64"),
        (lambda x: torch.empty(len(x), device="meta"), r"expected log-densities on cpu, .*; got meta; move"),
        (without_graph, r"the log-density varies, -3 to -0, but its gradient is zero at all 3 points; .* detach"),
        (lambda x: -x.numpy().sum(-1), r"expected a torch tensor; got ndarray"),
        (lambda x: torch.from_numpy(-x.numpy().sum(-1)), r"computing its log-density raised RuntimeError: Can't call"),
        (lambda x: -x.round().sum(-1), r"the log-density varies, .* but its gradient is zero"),
        (
            lambda x: torch.full_like(x[:, 0], -torch.inf),
            r"is -inf at all 3 points of the first batch, as at \[0, 0, 0\]",
        ),
        (
            lambda x: torch.where(
                x > 0, -x * x.sqrt(), -x.square() * (x - 0.5).clamp(max=-1.0).sqrt().nan_to_num()
            ).sum(-1),
            r"but its gradient is \[nan",
        ),
        (
            lambda x: -(x.square().sum(-1).sqrt()),
            r"log-density is -0 at \[0, 0, 0\] but its gradient is \[nan, nan, nan\]",
        ),
        (lambda x: x @ torch.ones(4), r"f: computing its log-density raised RuntimeError: .*3.*4"),
    ],
)
def test_what_is_wrong_is_told(function: Function, message: str) -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 0.125], [1.0, 1.0, 1.0]])
    with pytest.raises(TargetError, match=message) as caught:
        check_target(FunctionTarget(function, 3, name="f"), x)
    assert "\n" not in str(caught.value)


class Careless(Target):
    """A target whose own log_prob does what it likes."""

    features = 3

    def __init__(self, function: Function) -> None:
        self.function = function

    def log_prob(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: -x.square().sum(), r"Careless: expected log-densities of shape \(3,\) .* got \(\)"),
        (lambda x: None, r"Careless: expected a torch tensor; got NoneType"),
        (lambda x: x @ torch.ones(4), r"Careless: computing its log-density raised RuntimeError"),
    ],
)
def test_a_target_class_is_checked_as_well(function: Function, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        check_target(Careless(function), torch.rand(3, 3))
    check_target(Careless(lambda x: -x.square().sum(-1)), torch.rand(3, 3))


def test_a_point_of_many_coordinates_is_cut_short() -> None:
    x = torch.arange(32.0).repeat(2, 1) / 3
    with pytest.raises(
        TargetError, match=r"got nan at \[0, 0\.3333, 0\.6667, 1, 1\.333, 1\.667, 2, 2\.333, and 24 more\]"
    ):
        check_target(FunctionTarget(lambda x: x.sum(-1) * math.nan, 32), x)


def test_unreachable_points_are_fine_and_gradients_are_left_alone() -> None:
    x = torch.randn(100, 2, requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    target = FunctionTarget(lambda x: torch.where(x[:, 0] > 0, -(x * weight).square().sum(-1), -torch.inf), 2)
    check_target(target, x)
    assert x.grad is None
    assert weight.grad is None
    # A model whose parameters have gradients, without using the point, is as flat as one without a graph.
    with pytest.raises(TargetError, match="no finite integral"):
        check_target(FunctionTarget(lambda x: weight.sum().expand(len(x)), 2), x)


def test_a_gradient_at_an_unreachable_point_is_nobodys_business() -> None:
    # The root of a negative number, not taken, leaves a NaN in the gradient where the density is zero.
    target = FunctionTarget(lambda x: torch.where(x[:, 0] > 0, -x[:, 0].sqrt() - x[:, 0], -torch.inf), 1)
    x = torch.tensor([[-1.0], [1.0], [2.0]])
    assert target.force(x)[0].isnan()
    check_target(target, x)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (0, 2)])
def test_the_batch_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"check_target: expected points of shape \(n, 2\); got \("):
        check_target(U1(), torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (1.0, 1.0)}, r"f: expected bounds \(low, high\) with low < high; got \(1\.0, 1\.0\)"),
        ({"spread": 0.0}, r"f: expected a positive spread; got 0\.0"),
        ({"spread": math.nan}, r"f: expected a positive spread; got nan"),
        ({"features": 0}, r"f: expected features of at least 1; got 0"),
    ],
)
def test_a_function_target_is_told_sensible_things(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"features": 2, "name": "f"} | options
    with pytest.raises(TargetError, match=message):
        FunctionTarget(student, **given)
