"""The kernel density as a law: against scikit-learn, its samples, its file, and the bandwidth that a fit gives it."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn.neighbors import KernelDensity as Reference
from torch import Tensor
from torch.testing import assert_close

from pushforward.flows import Chain, Flow, KernelDensity, Mixture, ModelFileError, build, load, load_model, save
from pushforward.train.stacking import MOST_ROWS, kernel_flow

F64 = torch.float64


def points(n: int = 40, features: int = 2) -> Tensor:
    """Rows of two clusters, as a table's."""
    x = torch.randn(n, features, dtype=F64)
    x[::3] += 4.0
    return x


def bandwidth_of(flow: Flow) -> float:
    assert isinstance(flow.base, KernelDensity)
    return float(flow.base.log_bandwidth.exp())


@pytest.mark.parametrize(("n", "features", "bandwidth"), [(1, 1, 0.3), (40, 2, 0.5), (300, 7, 0.11)])
def test_density_is_that_of_scikit_learn(n: int, features: int, bandwidth: float) -> None:
    x = points(n, features)
    z = torch.cat([x + 0.1 * torch.randn_like(x), 3.0 * torch.randn(50, features, dtype=F64)])
    # A single leaf: the bounds of a tree are not exact.
    exact = Reference(bandwidth=bandwidth, leaf_size=n + 1, rtol=0, atol=0).fit(x.numpy()).score_samples(z.numpy())
    np.testing.assert_allclose(KernelDensity(x, bandwidth).log_prob(z).numpy(), exact, rtol=1e-9, atol=1e-9)


def test_float32_is_exact_beside_an_outlier_and_a_small_bandwidth() -> None:
    x = points(100, 20).float()
    x[0] = 40.0
    law = KernelDensity(x, 0.03)
    z = x + 0.03 * torch.randn_like(x)
    exact = copy.deepcopy(law).double().log_prob(z.double())
    assert_close(law.log_prob(z).double(), exact, rtol=1e-5, atol=1e-4)


def test_far_from_all_points_the_density_is_finite() -> None:
    law = KernelDensity(torch.tensor([[0.0], [1.0]], dtype=F64), 0.1)
    for x in (-1e3, 1e5):
        nearest = 0.0 if x < 0 else 1.0
        expected = stats.norm.logpdf(x, nearest, 0.1) - math.log(2)
        assert float(law.log_prob(torch.tensor([x], dtype=F64))) == pytest.approx(expected, rel=1e-12)


def test_many_rows_are_compared_a_part_at_a_time() -> None:
    law = KernelDensity(torch.randn(8_000, 1, dtype=F64), 0.2)
    z = torch.randn(2, 300, 1, dtype=F64)
    assert 300 < law._most_rows < 600
    for apply in (law.log_prob, law.standardize):
        assert_close(apply(z.view(600, 1)), apply(z).flatten(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [1, 3])
def test_samples_are_standardised_to_normals(features: int) -> None:
    law = KernelDensity(points(30, features), 0.4)
    z = law.sample(8_000)
    noise = law.standardize(z)
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    if features > 1:
        assert float((torch.corrcoef(noise.T) - torch.eye(features, dtype=F64)).abs().max()) < 0.06
    for column in law.standardize(1.2 * z).T:
        assert stats.kstest(column.numpy(), "norm").pvalue < 1e-4
    # Each point has its share of the samples, with the kernel's noise around it.
    near = torch.cdist(z, law.points).argmin(-1)
    assert len(near.unique()) == 30
    alone = KernelDensity(torch.full((1, features), 5.0, dtype=F64), 0.25).sample(20_000)
    assert_close(alone.mean(0), torch.full((features,), 5.0, dtype=F64), rtol=0, atol=0.01)
    assert_close(alone.std(0), torch.full((features,), 0.25, dtype=F64), rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_standardised_tails_keep_their_digits(dtype: torch.dtype) -> None:
    law = KernelDensity(torch.zeros(1, 1, dtype=dtype), 1.0)
    far = torch.tensor([[-12.0], [-6.0], [0.0], [6.0], [12.0]], dtype=dtype)
    assert_close(law.standardize(far), far)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_shapes_and_dtype(dtype: torch.dtype) -> None:
    law = KernelDensity(points(7, 3), 0.5).to(dtype)
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        z = law.rsample(n)
        assert (z.shape, z.dtype, z.requires_grad) == ((*lead, 3), dtype, False)
        assert (law.log_prob(z).shape, law.log_prob(z).dtype) == (lead, dtype)
        assert law.standardize(z).shape == z.shape
    assert (law.dtype, law.device, list(law.parameters())) == (dtype, torch.device("cpu"), [])
    law.initialize(torch.zeros(3), torch.eye(3))
    for call in (law.log_prob, law.standardize):
        with pytest.raises(ValueError, match=r"^KernelDensity: expected points of shape \(\.\.\., 3\); got \(5, 2\)$"):
            call(torch.zeros(5, 2, dtype=dtype))


def test_score_and_path() -> None:
    flow = Flow(KernelDensity(points(7, 3), 0.5), Chain([], features=3))
    x = flow.sample(5)
    exact = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    assert_close(flow.score(x), exact)
    x, log_prob = flow.rsample_and_log_prob(5, path=True)
    assert_close(log_prob, flow.log_prob(x))


def test_the_points_are_weights_and_their_shape_is_configuration(tmp_path: Path) -> None:
    x = points(9, 2).float()
    flow = Flow(KernelDensity(x, 0.3), Chain([], features=2)).eval()
    save(flow, tmp_path)
    assert '"points": [\n' in (tmp_path / "config.json").read_text()
    assert flow.base.config() == {"points": [9, 2]}
    tensors = load_file(tmp_path / "model.safetensors")
    assert_close(tensors["base.points"], x, rtol=0, atol=0)
    twin = load_model(tmp_path, Flow)
    z = torch.randn(8, 2)
    assert_close(twin(z), flow(z), rtol=0, atol=0)
    assert bandwidth_of(twin) == pytest.approx(0.3)
    x[0] = 99.0  # a law keeps points of its own
    assert_close(twin(z), flow(z), rtol=0, atol=0)
    save(Mixture([flow, build("gaussian", 2)], [0.3, 0.7]), tmp_path / "both")
    both = load_model(tmp_path / "both", Mixture)
    assert isinstance(both.members[0].base, KernelDensity)
    assert isinstance(load(tmp_path / "both"), Mixture)
    with pytest.raises(ModelFileError, match="expected a Flow; got Mixture"):
        load_model(tmp_path / "both", Flow)


def test_mistakes_are_named() -> None:
    for shape in ((0, 2), (5,), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"^KernelDensity: expected points of shape \(n, features\); got \("):
            KernelDensity(torch.zeros(shape))
    for bandwidth in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^KernelDensity: expected a (finite )?bandwidth above 0; got "):
            KernelDensity(torch.zeros(2, 2), bandwidth)


# The bandwidth


def test_the_bandwidth_is_about_the_best_for_new_rows() -> None:
    train, new = torch.randn(300, 2), torch.randn(2_000, 2)
    flow = kernel_flow(train)
    reached = float(flow.log_prob(new).mean())
    best = max(float(KernelDensity(train, float(h)).log_prob(new).mean()) for h in np.geomspace(0.05, 2.0, 25))
    assert reached > best - 0.02
    assert 0.2 < bandwidth_of(flow) < 0.6


def test_repeated_rows_count_once() -> None:
    """Rows that stand in the table many times would otherwise be best explained by no bandwidth at all."""
    x = torch.randn(80, 2)
    once, often = kernel_flow(x), kernel_flow(x.repeat(10, 1))
    assert bandwidth_of(often) == pytest.approx(bandwidth_of(once), rel=1e-6)
    assert isinstance(often.base, KernelDensity)
    assert often.base.points.shape == (80, 2)


def test_no_more_points_than_are_worth_storing() -> None:
    flow = kernel_flow(torch.randn(MOST_ROWS + MOST_ROWS // 2, 1))
    assert isinstance(flow.base, KernelDensity)
    assert len(flow.base.points) == MOST_ROWS
    assert float(flow.base.points.mean()) == pytest.approx(0.0, abs=0.1)  # drawn from all, not the lowest


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_hardly_any_rows(rows: int) -> None:
    flow = kernel_flow(torch.randn(rows, 2))
    assert math.isfinite(bandwidth_of(flow))
    assert bool(flow.log_prob(torch.zeros(3, 2)).isfinite().all())
