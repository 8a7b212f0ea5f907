"""Means and variances of gradient estimators against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pushforward.flows import Chain, Flow, Gaussian, build
from pushforward.train.objectives.gradient_estimators import (
    ESTIMATORS,
    GradientEstimator,
    alpha_divergence,
    expectation,
    forward_kl,
    importance_bound,
)

SAMPLES = 300_000


def gaussian(mean: Tensor, log_scale: Tensor) -> Flow:
    """A diagonal Gaussian as a flow, in float64."""
    flow = Flow(Gaussian(len(mean)), Chain([], features=len(mean))).double()
    with torch.no_grad():
        base_of(flow).location.copy_(mean)
        base_of(flow).log_scale.copy_(log_scale)
    return flow


Loss = Callable[[Flow], Tensor]


def mean_of(function: Callable[[Tensor], Tensor], n: int, estimator: GradientEstimator) -> Loss:
    """An estimate of the expectation of a function, summed over features."""
    return lambda flow: expectation(flow, lambda x: function(x).sum(-1), n, estimator)


def divergence(n: int, estimator: GradientEstimator, alpha: float = 0.0) -> Loss:
    """An estimate of a divergence from the standard Gaussian."""
    return lambda flow: alpha_divergence(flow, standard, n, estimator, alpha)[0]


def bound(n: int, samples: int, estimator: GradientEstimator) -> Loss:
    """An estimate of the importance-weighted bound for the standard Gaussian."""
    return lambda flow: importance_bound(flow, standard, n, samples, estimator)[0]


def gradients_per_sample(flow: Flow, loss_of: Loss, n: int) -> Tensor:
    """Gradients ``(n, 2 D)`` by location and log-scale of ``n`` independent estimates from one sample each.

    The Gaussian has n copies of the same parameters: row i of the gradient is that of estimate i.
    """
    features = flow.features
    rows = RepeatedGaussian(base_of(flow), n).double()
    loss_of(Flow(rows, Chain([], features=features))).backward()
    found = [parameter.grad for parameter in (rows.location, rows.log_scale)]
    return n * torch.cat([g for g in found if g is not None], -1)


def base_of(flow: Flow) -> Gaussian:
    """The Gaussian of a flow."""
    assert isinstance(flow.base, Gaussian)
    return flow.base


class RepeatedGaussian(Gaussian):
    """A Gaussian with separate parameters for every sample ``(n, D)``, for n independent gradients in one call."""

    def __init__(self, base: Gaussian, n: int) -> None:
        super().__init__(base.features)
        self.location = torch.nn.Parameter(base.location.detach().expand(n, -1).clone())
        self.log_scale = torch.nn.Parameter(base.log_scale.detach().expand(n, -1).clone())


def check_mean(found: Tensor, exact: Tensor, n: int) -> None:
    """Check that the mean of gradients ``(n, k)`` is within four standard errors of the exact one."""
    errors = (found.mean(0) - exact).abs() / (found.std(0) / math.sqrt(n) + 1e-12)
    assert bool((errors < 4).all()), errors


# (f, its expectation under N(m, s^2)) as functions of one feature, summed over features.
POLYNOMIALS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "linear": (lambda x: 3 * x, lambda m, s: 3 * m),
    "square": (lambda x: x**2, lambda m, s: m**2 + s**2),
    "cubic": (lambda x: x**3 - x, lambda m, s: m**3 + 3 * m * s**2 - m),
    "quartic": (lambda x: x**4, lambda m, s: m**4 + 6 * m**2 * s**2 + 3 * s**4),
}


@pytest.mark.parametrize("estimator", ["path-wise", "score-function-bare", "score-function"])
@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_in_closed_form(name: str, estimator: GradientEstimator) -> None:
    function, exact = POLYNOMIALS[name]
    mean, log_scale = torch.tensor([0.7, -0.3]).double(), torch.tensor([0.2, -0.4]).double()
    m, s = mean.clone().requires_grad_(), log_scale.clone().requires_grad_()
    value = exact(m, s.exp()).sum() + 0 * s.sum()
    truth = torch.cat(torch.autograd.grad(value, (m, s)))
    flow = gaussian(mean, log_scale)
    found = gradients_per_sample(flow, mean_of(function, SAMPLES, estimator), SAMPLES)
    check_mean(found, truth, SAMPLES)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_path_wise_variance_is_a_hundredth_of_the_score_functions(name: str) -> None:
    """Under N(2, 1/4) in ten dimensions, for the locations and for the scales."""
    n, function = 100_000, POLYNOMIALS[name][0]
    flow = gaussian(torch.full((10,), 2.0), torch.full((10,), math.log(0.5)))
    variances = {}
    estimators: tuple[GradientEstimator, ...] = ("path-wise", "score-function-bare")
    for estimator in estimators:
        found = gradients_per_sample(flow, mean_of(function, n, estimator), n)
        variances[estimator] = found.var(0).reshape(2, 10).sum(1)
    assert bool((variances["score-function-bare"] > 100 * variances["path-wise"]).all())


@pytest.mark.parametrize("scale", [0.5, math.sqrt(0.5), 0.9, 1.0, 1.3])
def test_variances_of_the_reverse_kl(scale: float) -> None:
    """q = N(0, s^2), p = N(0, 1): the variances of both estimators, by location and log-scale, are known."""
    n = SAMPLES
    flow = gaussian(torch.zeros(1), torch.full((1,), math.log(scale)))
    exact = torch.tensor([0.0, scale**2 - 1]).double()
    known: dict[GradientEstimator, tuple[float, float]] = {
        "path-wise": (scale**2, 2 * scale**4),
        "path": ((scale - 1 / scale) ** 2, 2 * (scale**2 - 1) ** 2),
    }
    for estimator, variances in known.items():
        found = gradients_per_sample(flow, divergence(n, estimator), n)
        check_mean(found, exact, n)
        centred = found - found.mean(0)
        measured, errors = centred.square().mean(0), centred.square().std(0) / math.sqrt(n)
        for i in range(2):
            assert abs(float(measured[i]) - variances[i]) <= 4 * float(errors[i]) + 1e-12, (estimator, i)
    for estimator in ESTIMATORS[2:]:
        check_mean(gradients_per_sample(flow, divergence(n, estimator), n), exact, n)


def standard(x: Tensor) -> Tensor:
    """The unnormalised standard Gaussian."""
    return -0.5 * x.square().sum(-1)


def gradient(flow: Flow, loss: Tensor) -> Tensor:
    """The gradient by all parameters in one vector."""
    found = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, flow.parameters(), strict=True)]
    return torch.cat([part.reshape(-1) for part in parts])


def repeated(flow: Flow, loss_of: Loss, times: int) -> Tensor:
    """Gradients ``(times, parameters)``."""
    return torch.stack([gradient(flow, loss_of(flow)) for _ in range(times)])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_divergences_of_gaussians(alpha: float) -> None:
    """Every estimator's gradient against the derivative of the divergence in closed form."""
    location, log_scale = torch.tensor([0.3]).double(), torch.tensor([-0.1]).double()
    m, s = location.clone().requires_grad_(), log_scale.clone().requires_grad_()
    if alpha == 0:
        exact = 0.5 * ((2 * s).exp() + m**2) - s
    elif alpha == 1:
        exact = s + 0.5 * (1 + m**2) * (-2 * s).exp()
    else:  # the integral of p^a q^(1-a), constants left out
        grid = torch.linspace(-12, 12, 20_001).double()
        log_q = -0.5 * ((grid - m) / s.exp()) ** 2 - s
        integral = torch.trapezoid((alpha * -0.5 * grid**2 + (1 - alpha) * log_q).exp(), grid)
        exact = integral.log() / (alpha * (alpha - 1))
    truth = torch.cat(torch.autograd.grad(exact.sum(), (m, s)))
    flow = gaussian(location, log_scale)
    for estimator in ESTIMATORS:
        if alpha == 1 and estimator == "path-wise":
            continue
        found = repeated(flow, divergence(20_000, estimator, alpha), 60)
        errors = (found.mean(0) - truth).abs() / (found.std(0) / math.sqrt(60) + 1e-4)
        assert bool((errors < 4).all()), (estimator, found.mean(0), truth)


@pytest.mark.parametrize("samples", [1, 5])
def test_importance_bound(samples: int) -> None:
    """All estimators have the same mean, DReG has the least variance, and one sample makes it the reverse KL."""
    flow = gaussian(torch.tensor([0.3, 0.0]), torch.tensor([-0.1, 0.2]))
    found = {e: repeated(flow, bound(2_000, samples, e), 150) for e in ESTIMATORS}
    reference = found["path"]
    for gradients in found.values():
        error = torch.sqrt((gradients.var(0) + reference.var(0)) / 150)
        assert bool(((gradients.mean(0) - reference.mean(0)).abs() < 4 * error).all())
    if samples == 1:
        exact = torch.tensor([-0.3, 0.0, 1 - math.exp(-0.2), 1 - math.exp(0.4)]).double()
        check_mean(reference, exact, 150)
    if samples > 1:
        assert reference.var(0).sum() < found["path-wise"].var(0).sum() < found["score-function-bare"].var(0).sum()


def test_values_at_the_optimum() -> None:
    flow = gaussian(torch.zeros(2), torch.zeros(2))
    log_z = math.log(2 * math.pi)
    for alpha in (0.0, 1.0):
        value, log_w = alpha_divergence(flow, standard, 10, alpha=alpha)
        assert float(value.detach()) == pytest.approx(-log_z if alpha == 0 else 0.0)
        assert torch.allclose(log_w, torch.full((10,), log_z).double())
    lower, _ = importance_bound(flow, standard, 3, 4)
    assert float(lower.detach()) == pytest.approx(log_z)
    assert float(expectation(flow, lambda x: x[:, 0] * 0 + 2, 5, "score-function").detach()) == 2


def test_forward_kl_with_forces_has_no_variance_at_the_optimum(perturb: Callable[..., Flow]) -> None:
    """Away from the optimum the mean gradient is that of maximum likelihood."""
    torch.manual_seed(0)
    flow = perturb(build("nsf-c", 3, layers=2, hidden=8, base="full")).double().eval()
    x = flow.sample(50)
    layers = sum(p.numel() for p in flow.bijection.parameters())
    # The parameters of the base come first; they learn by likelihood.
    assert float(gradient(flow, forward_kl(flow, x, flow.score_function(x)))[-layers:].abs().max()) < 1e-9
    assert float(gradient(flow, forward_kl(flow, x))[-layers:].abs().max()) > 1e-2
    n, times = 500, 100
    plain = repeated(flow, lambda f: forward_kl(f, torch.randn(n, 3).double()), times)

    def with_forces(f: Flow) -> Tensor:
        samples = torch.randn(n, 3).double()
        return forward_kl(f, samples, -samples)

    forced = repeated(flow, with_forces, times)
    errors = (plain.mean(0) - forced.mean(0)).abs() / torch.sqrt((plain.var(0) + forced.var(0)) / times + 1e-16)
    assert float((errors > 3).double().mean()) < 0.02
    value = float(forward_kl(flow, x, flow.score_function(x)).detach())
    assert value == pytest.approx(float(forward_kl(flow, x).detach()))


def test_invalid_arguments_are_refused() -> None:
    flow = gaussian(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="did you mean 'path-wise'"):
        alpha_divergence(flow, standard, 10, "pathwise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        expectation(flow, standard, 1, "score-function")
    with pytest.raises(ValueError, match="expected alpha of at least 0"):
        alpha_divergence(flow, standard, 10, alpha=-1.0)
    with pytest.raises(ValueError, match="no path-wise gradient"):
        alpha_divergence(flow, standard, 10, "path-wise", alpha=1.0)
    with pytest.raises(ValueError, match="samples of at least 1"):
        importance_bound(flow, standard, 10, 0)
