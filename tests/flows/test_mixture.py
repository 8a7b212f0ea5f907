"""Mixtures of flows: densities averaged in probability, usable wherever a single flow is."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.datasets.tables.schema import Column, Schema
from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import SplitRows, evaluate_flow
from pushforward.evaluate.inversion import LogDetError, RoundTrip, largest_errors, log_det_error, round_trip
from pushforward.flows import (
    Chain,
    Flow,
    Gaussian,
    Mixture,
    ModelFileError,
    Permutation,
    build,
    build_mixture,
    load,
    load_model,
    members_of,
    save,
)
from pushforward.flows.kernels import native
from pushforward.train.layer_metrics import gradient_norms, log_det_terms, named_layers

Perturb = Callable[..., nn.Module]
F64 = torch.float64
WEIGHTS = (0.5, 0.3, 0.2)


def gaussian(mean: float, scale: float, features: int = 2, context: int = 0) -> Flow:
    """A Gaussian without layers; half of the context is added to the mean and to the log-scale."""
    flow = Flow(Gaussian(features, context), Chain([], features=features)).double()
    with torch.no_grad():
        for name, parameter in flow.base.named_parameters():
            own = {"location": mean, "log_scale": math.log(scale), "from_context.weight": 0.5}
            parameter.fill_(own.get(name, 0.0))
    return flow.eval()


def three(perturb: Perturb, context: int = 0) -> Mixture:
    """Three different flows; the last one does not see the context."""
    names = ("nsf-ar", "maf", "made-mog")
    flows = [build(name, 3, context if name != "made-mog" else 0, layers=1, hidden=8, components=3) for name in names]
    mixture = Mixture(flows, WEIGHTS)
    perturb(mixture, 0.5)
    return mixture.double().eval()


def apart() -> Mixture:
    """Gaussians that hardly overlap: a sample shows which member it is from."""
    return Mixture([gaussian(-10.0, 0.5), gaussian(0.0, 2.0), gaussian(10.0, 1.0)], WEIGHTS)


# The density


@pytest.mark.parametrize("context", [0, 2])
def test_log_prob_is_the_log_of_the_weighted_mean_density(context: int, perturb: Perturb) -> None:
    mixture = three(perturb, context)
    x, given = torch.randn(4, 5, 3, dtype=F64), torch.randn(5, context, dtype=F64) if context else None
    each = [m.log_prob(x, given if m.context else None) for m in mixture.members]
    by_hand = sum(w * log_prob.exp() for w, log_prob in zip(WEIGHTS, each, strict=True))
    assert_close(mixture.log_prob(x, given), torch.as_tensor(by_hand).log(), rtol=1e-12, atol=1e-12)
    assert_close(mixture(x, given), mixture.log_prob(x, given), rtol=0, atol=0)
    joint = mixture.joint_log_prob(x, given)
    assert joint.shape == (4, 5, 3)
    assert_close(joint.logsumexp(-1), mixture.log_prob(x, given))
    # Far out every density underflows to zero, but the log-density stays finite.
    far = torch.full((3,), 1e3, dtype=F64)
    assert bool(mixture.log_prob(far, None if given is None else given[0]).isfinite())


def test_weights_are_normalised_and_equal_by_default() -> None:
    flows = [gaussian(float(i), 1.0) for i in range(4)]
    assert Mixture(flows).weights == [0.25] * 4
    assert Mixture(flows, [1, 1, 2, 4]).weights == [0.125, 0.125, 0.25, 0.5]
    x = torch.zeros(2, dtype=F64)
    assert_close(Mixture(flows, [1, 1, 2, 4]).log_prob(x), Mixture(flows, [3, 3, 6, 12]).log_prob(x))
    assert members_of(Mixture(flows)) == flows
    assert members_of(flows[0]) == [flows[0]]


def test_density_integrates_to_one() -> None:
    mixture = apart()
    line = torch.linspace(-40, 40, 801, dtype=F64)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        assert float(mixture.log_prob(grid).exp().sum() * 0.1**2) == pytest.approx(1.0, abs=1e-8)


def test_functorch_and_compile_work(perturb: Perturb) -> None:
    mixture = three(perturb)
    x = torch.randn(4, 3, dtype=F64, requires_grad=True)
    with native.disabled():
        scores = torch.func.vmap(torch.func.grad(mixture.log_prob))(x)
    (expected,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    assert_close(scores, expected)
    two = Mixture([gaussian(0.0, 1.0), gaussian(1.0, 2.0)])
    y = x.detach()[:, :2]
    assert_close(torch.compile(two.log_prob, fullgraph=True, backend="eager")(y), two.log_prob(y))


# Samples


def test_samples_come_from_members_in_proportion_to_their_weights() -> None:
    mixture = apart()
    n = 20_000
    for lead in (n, (4, n // 4)):
        x = mixture.sample(lead)
        assert x.shape == (*(lead if isinstance(lead, tuple) else (lead,)), 2)
        rows = x.reshape(-1, 2)
        member = mixture.joint_log_prob(rows).argmax(-1)
        counts = torch.bincount(member, minlength=3).numpy()
        assert stats.chisquare(counts, n * np.array(WEIGHTS)).pvalue > 1e-4
        # Samples come in random order: neighbours are independent.
        same = float((member[1:] == member[:-1]).double().mean())
        assert same == pytest.approx(sum(w * w for w in WEIGHTS), abs=0.02)
        assert float(rows[member == 0].std()) == pytest.approx(0.5, rel=0.03)


def test_each_row_of_the_context_gets_its_own_samples() -> None:
    """The first and the last member depend on the context, the second one does not."""
    mixture = Mixture([gaussian(0.0, 0.01, 2, 1), gaussian(-50.0, 0.01), gaussian(100.0, 0.01, 2, 1)], WEIGHTS)
    given = torch.arange(12.0, dtype=F64).view(3, 4, 1)
    x = mixture.sample(500, given)
    assert x.shape == (500, 3, 4, 2)
    seen, unseen = 0.01 * torch.exp(0.5 * given), torch.full_like(given, 0.01)
    places = ((0.5 * given, seen), (torch.full_like(given, -50.0), unseen), (100.0 + 0.5 * given, seen))
    for (mean, scale), weight in zip(places, WEIGHTS, strict=True):
        here = ((x - mean).abs() < 6 * scale).all(-1)
        assert_close(here.double().mean(0), torch.full((3, 4), weight, dtype=F64), rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("context", [0, 2])
def test_shapes_and_dtype(context: int, dtype: torch.dtype, perturb: Perturb) -> None:
    mixture = three(perturb, context).to(dtype)
    for n, lead in (((), ()), (4, (4,)), ((2, 5), (2, 5)), (0, (0,))):
        for rows in ((), (6,), (0,)) if context else ((),):
            given = torch.randn(*rows, context, dtype=dtype) if context else None
            x = mixture.rsample(n, given)
            assert (x.shape, x.dtype) == ((*lead, *rows, 3), dtype)
            log_prob = mixture.log_prob(x, given)
            assert (log_prob.shape, log_prob.dtype) == ((*lead, *rows), dtype)
            assert mixture.latents(x, given).shape == x.shape
            assert not mixture.sample(n, given).requires_grad
            x, log_prob = mixture.sample_and_log_prob(n, given)
            assert_close(log_prob, mixture.log_prob(x, given).detach())
    if context:  # broadcasting, also where a member does not see the context
        x, given = torch.randn(4, 1, 3, dtype=dtype), torch.randn(5, context, dtype=dtype)
        together = mixture.log_prob(x, given)
        assert together.shape == (4, 5)
        assert_close(together[2, 3], mixture.log_prob(x[2, 0], given[3]), rtol=1e-4, atol=1e-4)
        assert mixture.latents(x, given).shape == (4, 5, 3)


def test_gradients_of_samples_are_those_of_the_members() -> None:
    mixture = apart()
    x = mixture.rsample(3_000)
    member = mixture.joint_log_prob(x).argmax(-1)
    x.sum().backward()
    for m, flow in enumerate(mixture.members):
        own = x[member == m].detach()
        base = flow.base
        assert isinstance(base, Gaussian)
        assert base.location.grad is not None
        assert base.log_scale.grad is not None
        assert_close(base.location.grad, torch.full((2,), float(len(own)), dtype=F64))
        assert_close(base.log_scale.grad, (own - base.location.detach()).sum(0), rtol=1e-6, atol=1e-6)


# Latents


def least_p_value(latents: Tensor) -> float:
    """The least p-value of tests of normality of the columns."""
    return float(min(stats.kstest(column.detach().numpy(), "norm").pvalue for column in latents.T))


@pytest.mark.parametrize("context", [0, 2])
def test_latents_are_normal_for_samples_of_the_mixture_only(context: int, perturb: Perturb) -> None:
    mixture = three(perturb, context)
    given = torch.tensor([0.5, -1.0], dtype=F64) if context else None
    x = mixture.sample(5_000, given)
    latents = mixture.latents(x, given).detach()
    assert least_p_value(latents) > 1e-4
    assert float((torch.corrcoef(latents.T) - torch.eye(3, dtype=F64)).abs().max()) < 0.07
    alone = [m.latents(x, given if m.context else None) for m in mixture.members]
    assert all(least_p_value(latents) < 1e-4 for latents in alone)
    wrong = mixture.members[0].sample(5_000, given)
    assert least_p_value(mixture.latents(wrong, given)) < 1e-4


def test_latents_use_a_member_drawn_with_its_posterior_probability() -> None:
    mixture = Mixture([gaussian(0.0, 1.0), gaussian(1.0, 1.0)], [0.5, 0.5])
    x = torch.full((2,), 0.25, dtype=F64)
    first = float(mixture.joint_log_prob(x).detach().softmax(-1)[0])
    for uniform, member in ((first - 1e-9, 0), (first + 1e-9, 1), (0.0, 0), (1.0, 1)):
        latents = mixture.latents(x, None, torch.tensor(uniform, dtype=F64))
        assert_close(latents, mixture.members[member].latents(x))
    drawn = mixture.latents(x.expand(4_000, 2))
    assert float((drawn[:, 0] == drawn[:, 0].max()).double().mean()) == pytest.approx(first, abs=0.04)


# Saving, dtypes, errors


@pytest.mark.parametrize("context", [0, 2])
def test_a_saved_mixture_is_loaded_unchanged(context: int, tmp_path: Path, perturb: Perturb) -> None:
    mixture = three(perturb, context).float()
    save(mixture, tmp_path, extra={"a": 1})
    twin = load(tmp_path)
    assert isinstance(twin, Mixture)
    assert not twin.training
    assert twin.weights == mixture.weights
    x, given = torch.randn(8, 3), torch.randn(8, context) if context else None
    assert_close(twin(x, given), mixture(x, given), rtol=0, atol=0)
    assert_close(twin.state_dict(), mixture.state_dict(), rtol=0, atol=0)
    assert_close(copy.deepcopy(mixture)(x, given), mixture(x, given), rtol=0, atol=0)
    with pytest.raises(ModelFileError) as error:
        load_model(tmp_path, Flow)
    assert str(error.value) == f"{tmp_path / 'config.json'}: expected a Flow; got Mixture"


def test_dtype_and_device(perturb: Perturb) -> None:
    mixture = three(perturb)
    x = torch.randn(5, 3, dtype=F64)
    exact = mixture.log_prob(x)
    assert_close(mixture.float().log_prob(x.float()).double(), exact, rtol=1e-4, atol=1e-4)
    # The weights are Python numbers: conversion to single precision and back does not change them.
    assert_close(apart().float().double().log_prob(x[:, :2]), apart().log_prob(x[:, :2]), rtol=0, atol=1e-6)
    assert mixture.weights == list(WEIGHTS)
    meta = mixture.to("meta")
    assert meta.log_prob(x.float().to("meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_works_on_a_gpu(perturb: Perturb) -> None:
    mixture = three(perturb)
    x = torch.randn(5, 3, dtype=F64)
    exact = mixture.log_prob(x)
    mixture.cuda()
    assert_close(mixture.log_prob(x.cuda()).cpu(), exact)
    assert mixture.sample(300).device.type == mixture.latents(x.cuda()).device.type == "cuda"


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no members": (lambda: Mixture([]), "Mixture: expected at least one member; got none"),
    "fewer weights": (
        lambda: Mixture([gaussian(0, 1), gaussian(0, 1)], [1.0]),
        r"Mixture: expected 2 weights above 0; got \[1.0\]",
    ),
    "a weight of zero": (
        lambda: Mixture([gaussian(0, 1), gaussian(0, 1)], [1.0, 0.0]),
        r"Mixture: expected 2 weights above 0; got \[1.0, 0.0\]",
    ),
    "an infinite weight": (
        lambda: Mixture([gaussian(0, 1)], [math.inf]),
        r"Mixture: expected 1 weights above 0; got \[inf\]",
    ),
    "features": (
        lambda: Mixture([gaussian(0, 1), gaussian(0, 1, 3)]),
        "Mixture: expected 2 features and a context of 0 or 0 in member 1; got 3 and 0",
    ),
    "context": (
        lambda: Mixture([gaussian(0, 1, 2, 1), gaussian(0, 1, 2, 3)]),
        "Mixture: expected 2 features and a context of 0 or 3 in member 0; got 2 and 1",
    ),
    "no context": (
        lambda: Mixture([gaussian(0, 1, 2, 1)]).log_prob(torch.zeros(2)),
        r"Mixture: expected context of shape \(\.\.\., 1\); got none",
    ),
    "no context to sample": (
        lambda: Mixture([gaussian(0, 1, 2, 1), gaussian(0, 1)]).sample(3),
        r"Mixture: expected context of shape \(\.\.\., 1\); got none",
    ),
    "a context": (
        lambda: Mixture([gaussian(0, 1)]).log_prob(torch.zeros(2), torch.zeros(1)),
        r"Mixture: expected no context; got one of shape \(1,\)",
    ),
    "another context": (
        lambda: Mixture([gaussian(0, 1, 2, 1)]).sample(3, torch.zeros(4, 2)),
        r"Mixture: expected context of shape \(\.\.\., 1\); got \(4, 2\)",
    ),
    "members": (lambda: build_mixture("maf", 2, members=0), "Mixture: expected at least one member; got none"),
    "name": (
        lambda: build_mixture("mfa", 2, members=2),
        "unknown flow 'mfa'; did you mean 'maf'\\? known: .*",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_errors_with_a_clear_message(mistake: str) -> None:
    call, said = MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"^{said}$"):
        call()


# Members of build_mixture


def test_members_have_different_weights_and_orders_of_features() -> None:
    mixture = build_mixture("made-mog", 6, members=4, hidden=8, components=3, base="full")
    orders = []
    for flow in mixture.members:
        (first,) = flow.bijection.children().__next__().children()
        assert isinstance(first, Permutation)
        orders.append(tuple(first.order))
        assert flow.base.config()["frame"].covariance == "full"
    assert len(set(orders)) > 1
    firsts = [flow.base.state_dict()["conditioner.first.weight"] for flow in mixture.members]
    assert not torch.equal(firsts[0], firsts[1])
    assert mixture.weights == [0.25] * 4
    torch.manual_seed(3)
    first_built = build_mixture("nsf-ar", 3, 2, members=2, layers=1, hidden=4)
    torch.manual_seed(3)
    again = build_mixture("nsf-ar", 3, 2, members=2, layers=1, hidden=4)
    assert_close(first_built.state_dict(), again.state_dict(), rtol=0, atol=0)
    (one,) = build_mixture("maf", 1, members=1, hidden=4, layers=1).members
    assert not any(isinstance(m, Permutation) for m in one.modules())


def test_the_layers_of_a_mixture_are_its_members(perturb: Perturb) -> None:
    mixture = three(perturb)
    assert list(named_layers(mixture)) == ["member-00", "member-01", "member-02"]
    mixture.log_prob(torch.randn(5, 3, dtype=F64)).sum().backward()
    norms = gradient_norms(named_layers(mixture))
    for name, member in zip(norms, mixture.members, strict=True):
        squares = torch.stack([p.grad.square().sum() for p in member.parameters() if p.grad is not None])
        assert_close(norms[name], squares.sum().sqrt())
    assert log_det_terms(mixture, torch.randn(5, 3, dtype=F64)) == {}


# Evaluation, fitted densities


def test_worst_error_of_several_members() -> None:
    trips = [RoundTrip(1e-9, 3e-9, 10), RoundTrip(2e-9, 1e-9, 10)]
    assert largest_errors(trips) == RoundTrip(2e-9, 3e-9, 10)
    single = [RoundTrip(1e-9, 1e-9, 10, 1e-5, 2e-5), RoundTrip(1e-9, 1e-9, 10, 3e-5, 1e-5)]
    assert largest_errors(single) == RoundTrip(1e-9, 1e-9, 10, 3e-5, 2e-5)
    broken = largest_errors([LogDetError(1e-9, 8), LogDetError(math.nan, 8), LogDetError(2.0, 8)])
    assert math.isnan(broken.error)
    assert (broken.rows, broken.error_float32) == (8, None)
    assert largest_errors(trips[:1]) == trips[0]


@pytest.mark.parametrize("context", [0, 2])
def test_evaluation_of_a_mixture(context: int, perturb: Perturb) -> None:
    """Inversion errors are those of the worst member; latents are those of the mixture."""
    mixture = three(perturb, context)
    given = torch.randn(300, context, dtype=F64) if context else None
    x = mixture.sample((), given) if context else mixture.sample(300)
    train, validation, test = (part.numpy() for part in x.split([150, 50, 100]))
    contexts: Any = None if given is None else tuple(part.numpy() for part in given.split([150, 50, 100]))
    options: dict[str, Any] = {"columns": ["a", "b", "c"], "standardize_log_det": 0.0}
    options |= {"baselines": False, "samples": 200}
    rows = SplitRows(train, validation, test, contexts)
    report = evaluate_flow(mixture, rows, **options, float32=True)
    seen = None if contexts is None else contexts[2]
    log_prob = mixture.log_prob(torch.from_numpy(test), None if seen is None else torch.from_numpy(seen))
    assert report.test.nll == pytest.approx(-float(log_prob.detach().mean()))
    checked = np.sort(np.random.default_rng(0).permutation(100))
    own = [seen[checked] if m.context and seen is not None else None for m in mixture.members]
    trips = [
        round_trip(m, test[checked], c, std=train.std(axis=0), float32=True)
        for m, c in zip(mixture.members, own, strict=True)
    ]
    assert report.round_trip == largest_errors(trips)
    assert len({trip.points for trip in trips}) > 1
    assert 0.0 < report.round_trip.points < 1e-8
    dets = [log_det_error(m, test[checked], c, float32=True) for m, c in zip(mixture.members, own, strict=True)]
    assert report.log_det == largest_errors(dets)
    assert report.latent is not None
    assert report.calibration is not None
    # A single wrong member is found, though the others are right.
    broken = copy.deepcopy(mixture)
    original = broken.members[1].bijection.forward

    def wrong_forward(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = original(x, context)
        return z, log_det + 0.5

    broken.members[1].bijection.forward = wrong_forward  # type: ignore[method-assign]
    assert evaluate_flow(broken, rows, **options).log_det.error == pytest.approx(0.5, abs=1e-6)


def test_a_fitted_density_holds_a_mixture(tmp_path: Path, perturb: Perturb) -> None:
    mixture = three(perturb).float()
    schema = Schema(tuple(Column(name, "double", -9.0, 9.0, None, None, 99, 0.0) for name in "abc"))
    density = FittedDensity(copy.deepcopy(mixture), schema, [0.0, 0.0, 0.0])
    density.save(tmp_path)
    loaded = FittedDensity.load(tmp_path)
    assert isinstance(loaded.model, Mixture)
    rows = np.random.default_rng(0).normal(size=(20, 3))
    exact = mixture.double().log_prob(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(loaded.log_prob(rows), exact, rtol=1e-12)
    np.testing.assert_allclose(density.log_prob(rows, batch_size=7), exact, rtol=1e-12)
    assert np.array_equal(loaded.draw(30, seed=1), density.draw(30, seed=1))
    assert not np.array_equal(loaded.draw(30, seed=1), loaded.draw(30, seed=2))
