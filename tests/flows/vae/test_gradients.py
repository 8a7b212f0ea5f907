"""Gradient estimators of the bounds: against each other, and against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows.vae.autoencoder import Autoencoder, Estimator
from pushforward.flows.vae.decoders import (
    GaussianDecoder,
)
from tests.fixtures.autoencoders import (
    FEATURES,
    LATENT,
    base_of,
    probabilistic_pca,
    rows_for,
    small_autoencoder,
    worsen,
)

Perturb = Callable[[nn.Module], nn.Module]


def gradient(model: Autoencoder, bound: Tensor, of: str) -> Tensor:
    parameters = [p for name, p in model.named_parameters() if name.startswith(of)]
    found = torch.autograd.grad(bound.sum(), parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def gradients(
    model: Autoencoder, x: Tensor, of: str, estimator: Estimator, samples: int, draws: int, beta: float = 1.0
) -> Tensor:
    def bound() -> Tensor:
        if samples == 1:
            return model.elbo(x, estimator=estimator, beta=beta)
        return model.iwae_bound(x, samples, estimator=estimator, beta=beta)

    return torch.stack([gradient(model, bound(), of) for _ in range(draws)])


def assert_same_mean(a: Tensor, b: Tensor) -> None:
    se = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert bool(((a.mean(0) - b.mean(0)).abs() <= 4.5 * se + 1e-9).all())


@pytest.mark.parametrize("of", ["encoder", "posterior", "decoder"])
@pytest.mark.parametrize(
    ("estimator", "samples", "beta"), [("path", 1, 1.0), ("dreg", 4, 1.0), ("path", 1, 0.4), ("dreg", 4, 0.4)]
)
def test_estimators_agree_in_the_mean(of: str, estimator: Estimator, samples: int, beta: float) -> None:
    model, distribution = probabilistic_pca()
    worsen(model)
    x = distribution.sample((1,))
    rows = x.expand(64, FEATURES)  # gradients are summed over rows: more draws in one call
    path_wise = gradients(model, rows, of, "path-wise", samples, 80, beta)
    other = gradients(model, rows, of, estimator, samples, 80, beta)
    assert_same_mean(path_wise, other)
    if of != "decoder":
        assert float(other.mean(0).abs().max()) > 5 * float(other.std(0).max()) / math.sqrt(
            len(other)
        )  # the gradients are not zero


def test_gradient_of_the_elbo_equals_its_closed_form() -> None:
    """Means of both estimators against finite differences of the exact ELBO of a linear-Gaussian model."""
    model, distribution = probabilistic_pca()
    worsen(model)
    x = distribution.sample((1,))
    base = base_of(model)

    def exact() -> float:
        # E[log p(x|z)] of a Gaussian z is the log-likelihood at its mean minus a trace; the KL is to N(0, I).
        with torch.no_grad():
            mean = model.encoder(x)[0] + base.location
            factor = (base.from_noise(torch.eye(LATENT).double(), torch.zeros(LATENT).double()) - base.location).T
            assert isinstance(model.decoder, GaussianDecoder)
            assert isinstance(model.decoder.net, nn.Linear)
            w, s = model.decoder.net.weight, model.decoder.scale
            fit = model.decoder.log_prob(x[0], mean) - 0.5 * ((w @ factor) / s[:, None]).square().sum()
            kl = 0.5 * (factor.square().sum() + mean.square().sum() - LATENT) - factor.diagonal().log().sum()
            return float(fit - kl)

    for estimator in ("path-wise", "path"):
        rows = x.expand(100_000, FEATURES)
        torch.autograd.backward(model.elbo(rows, estimator=estimator).mean())
        for parameter in (base.location, base.log_scale):
            found = parameter.grad
            assert found is not None
            for i in range(LATENT):
                ends = []
                for step in (1e-5, -2e-5):
                    with torch.no_grad():
                        parameter[i] += step
                    ends.append(exact())
                with torch.no_grad():
                    parameter[i] += 1e-5
                assert float(found[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=0.1)
        model.zero_grad()


@pytest.mark.parametrize(("estimator", "samples"), [("path", 1), ("dreg", 4)])
def test_path_gradients_vanish_at_the_exact_posterior(estimator: Estimator, samples: int) -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((20,))
    for of in ("encoder", "posterior"):
        assert float(gradients(model, x, of, estimator, samples, 3).abs().max()) < 1e-9
        assert (
            float(gradients(model, x, of, "path-wise", samples, 3).abs().max()) > 0.1
        )  # the variance of the path-wise gradient does not vanish


@pytest.mark.parametrize("posterior", ["gaussian", "iaf", "nsf-c", "maf"])
def test_flow_posteriors_have_path_gradients(posterior: str, perturb: Perturb) -> None:
    """With the same noise, the path-wise gradient is the path gradient plus the score term; values are equal."""
    model = small_autoencoder(perturb=perturb, posterior=posterior)
    x = rows_for("logistic")
    parameters = [p for name, p in model.named_parameters() if name.startswith(("encoder", "posterior"))]

    def seeded(estimator: Estimator) -> tuple[Tensor, tuple[Tensor, ...]]:
        torch.manual_seed(5)
        bound = model.elbo(x, estimator=estimator)
        return bound.detach(), torch.autograd.grad(bound.sum(), parameters)

    (path_wise_value, path_wise), (path_value, path) = seeded("path-wise"), seeded("path")
    assert_close(path_wise_value, path_value)
    torch.manual_seed(5)
    context = model.encoder(x)
    z = model.posterior.rsample(1, context).detach()
    score = torch.autograd.grad(model.posterior.log_prob(z, context).sum(), parameters)
    for of_path_wise, of_path, of_score in zip(path_wise, path, score, strict=True):
        assert_close(of_path_wise, of_path - of_score, rtol=1e-6, atol=1e-8)
    assert max(float(g.abs().max()) for g in score) > 1e-3


def test_dreg_gives_decoder_and_prior_the_gradient_of_the_bound() -> None:
    model = small_autoencoder(prior="realnvp")
    x = rows_for("logistic")
    for of in ("decoder", "prior"):
        found = []
        for estimator in ("path-wise", "dreg"):
            torch.manual_seed(3)
            found.append(gradient(model, model.iwae_bound(x, 5, estimator=estimator), of))
        assert_close(found[0], found[1])
