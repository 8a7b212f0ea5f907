"""KernelDensity: against scikit-learn, samples, latents, saving and loading."""

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

F64 = torch.float64


def points(n: int = 40, features: int = 2) -> Tensor:
    """Draw points in two clusters."""
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
    base = KernelDensity(x, 0.03)
    z = x + 0.03 * torch.randn_like(x)
    exact = copy.deepcopy(base).double().log_prob(z.double())
    assert_close(base.log_prob(z).double(), exact, rtol=1e-5, atol=1e-4)


def test_log_density_far_from_all_points_is_finite() -> None:
    base = KernelDensity(torch.tensor([[0.0], [1.0]], dtype=F64), 0.1)
    for x in (-1e3, 1e5):
        nearest = 0.0 if x < 0 else 1.0
        expected = stats.norm.logpdf(x, nearest, 0.1) - math.log(2)
        assert float(base.log_prob(torch.tensor([x], dtype=F64))) == pytest.approx(expected, rel=1e-12)


def test_many_rows_are_compared_in_chunks() -> None:
    base = KernelDensity(torch.randn(8_000, 1, dtype=F64), 0.2)
    z = torch.randn(2, 300, 1, dtype=F64)
    assert 300 < base.chunk_rows < 600
    for apply in (base.log_prob, base.latents):
        assert_close(apply(z.view(600, 1)), apply(z).flatten(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [1, 3])
def test_latents_of_samples_are_normal(features: int) -> None:
    base = KernelDensity(points(30, features), 0.4)
    z = base.sample(8_000)
    latents = base.latents(z)
    for column in latents.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    if features > 1:
        assert float((torch.corrcoef(latents.T) - torch.eye(features, dtype=F64)).abs().max()) < 0.06
    for column in base.latents(1.2 * z).T:
        assert stats.kstest(column.numpy(), "norm").pvalue < 1e-4
    # Each point has its share of the samples, with a standard deviation of one bandwidth.
    near = torch.cdist(z, base.points).argmin(-1)
    assert len(near.unique()) == 30
    alone = KernelDensity(torch.full((1, features), 5.0, dtype=F64), 0.25).sample(20_000)
    assert_close(alone.mean(0), torch.full((features,), 5.0, dtype=F64), rtol=0, atol=0.01)
    assert_close(alone.std(0), torch.full((features,), 0.25, dtype=F64), rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_latents_in_the_tails_are_exact(dtype: torch.dtype) -> None:
    base = KernelDensity(torch.zeros(1, 1, dtype=dtype), 1.0)
    far = torch.tensor([[-12.0], [-6.0], [0.0], [6.0], [12.0]], dtype=dtype)
    assert_close(base.latents(far), far)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_shapes_and_dtype(dtype: torch.dtype) -> None:
    base = KernelDensity(points(7, 3), 0.5).to(dtype)
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        z = base.rsample(n)
        assert (z.shape, z.dtype, z.requires_grad) == ((*lead, 3), dtype, False)
        assert (base.log_prob(z).shape, base.log_prob(z).dtype) == (lead, dtype)
        assert base.latents(z).shape == z.shape
    assert (base.dtype, base.device, list(base.parameters())) == (dtype, torch.device("cpu"), [])
    base.initialize(torch.zeros(3), torch.eye(3))
    for call in (base.log_prob, base.latents):
        with pytest.raises(ValueError, match=r"^KernelDensity: expected points of shape \(\.\.\., 3\); got \(5, 2\)$"):
            call(torch.zeros(5, 2, dtype=dtype))


def test_score_and_path() -> None:
    flow = Flow(KernelDensity(points(7, 3), 0.5), Chain([], features=3))
    x = flow.sample(5)
    exact = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    assert_close(flow.score_function(x), exact)
    x, log_prob = flow.rsample_and_log_prob(5, path=True)
    assert_close(log_prob, flow.log_prob(x))


def test_points_are_saved_as_weights(tmp_path: Path) -> None:
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
    x[0] = 99.0  # the base has its own copy of the points
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
