"""Autoencoders: bounds against exact likelihoods, shapes, saved models and errors."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pushforward.evaluate import nll
from pushforward.flows import Gaussian, Standardize, build
from pushforward.flows.vae.autoencoder import CHUNK, Autoencoder, build_autoencoder
from pushforward.flows.vae.decoders import (
    BernoulliDecoder,
    CategoricalDecoder,
)
from pushforward.flows.vae.encoder import Encoder
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


def test_elbo_with_the_exact_posterior_is_the_log_likelihood() -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((50,))
    for bound in (model.elbo(x), model.elbo(x, 3, estimator="path"), model(x), model.iwae_bound(x, 4)):
        assert_close(bound, distribution.log_prob(x))
    assert_close(model.log_prob_bound(x, 7), distribution.log_prob(x))


def posterior_of_zero(model: Autoencoder) -> torch.distributions.MultivariateNormal:
    """The posterior for a context of zero: the difference from the exact mean is its mean."""
    base = base_of(model)
    location, columns = (
        base.from_noise(e, torch.zeros(LATENT).double()).detach() for e in (torch.zeros(LATENT), torch.eye(LATENT))
    )
    return torch.distributions.MultivariateNormal(location, scale_tril=(columns - location).T)


def test_more_samples_tighten_the_bound_towards_the_log_likelihood() -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((200,))
    gaps = [float((distribution.log_prob(x) - worsen(model, 0.5).log_prob_bound(x, 1)).mean())]
    gaps += [float((distribution.log_prob(x) - model.log_prob_bound(x, k)).mean()) for k in (4, 32, 2_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    assert gaps[-1] == pytest.approx(0.0, abs=0.01)


def test_the_gap_of_the_elbo_is_the_divergence_of_the_posterior() -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((3,))
    exact = posterior_of_zero(model)
    gap = distribution.log_prob(x) - worsen(model).elbo(x, 40_000)
    divergence = torch.distributions.kl_divergence(posterior_of_zero(model), exact).expand(3)
    assert_close(gap.detach(), divergence, rtol=0.03, atol=0.0)


def test_beta_weighs_prior_and_posterior_alone() -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((5,))
    torch.manual_seed(1)
    z, log_q = model.posterior.rsample_and_log_prob(1, model.encoder(x))
    for beta in (0.0, 0.3):
        torch.manual_seed(1)
        wanted = model.decoder.log_prob(x, z) + beta * (model.prior.log_prob(z) - log_q)
        assert_close(model.elbo(x, beta=beta), wanted[0])


@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK + 3])
def test_bounds_do_not_depend_on_chunks(rows: int) -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((rows,))
    # With the exact posterior every weight is p(x), whatever the noise and the chunks.
    assert_close(model.log_prob_bound(x, 3 if rows > 7 else 3_000), distribution.log_prob(x))
    assert model.log_prob_bound(x.reshape(rows, 1, FEATURES), 2).shape == (rows, 1)


def test_log_prob_is_repeatable_and_leaves_the_generator_unchanged() -> None:
    model, distribution = probabilistic_pca()
    worsen(model)
    x = distribution.sample((9,))
    before = torch.get_rng_state()
    first = model.log_prob(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(1)
    assert torch.equal(model.log_prob(x), first)
    assert nll(model, x).nll == pytest.approx(-float(first.mean()))


@pytest.mark.parametrize(
    ("posterior", "options"), [("gaussian", {}), ("gaussian", {"base": "low-rank"}), ("iaf", {}), ("nsf-c", {})]
)
def test_log_prob_of_a_row_does_not_depend_on_the_other_rows(
    posterior: str, options: dict[str, Any], perturb: Perturb
) -> None:
    sizes = {} if posterior == "gaussian" else {"layers": 2, "hidden": 8, "blocks": 1}
    model = small_autoencoder(perturb=perturb, posterior=posterior, posterior_options=sizes | options)
    assert isinstance(model.posterior.base, Gaussian)
    x = rows_for("logistic", 20)  # more pairs with latent vectors than one chunk
    together = model.log_prob(x)
    order = torch.randperm(len(x))
    assert_close(model.log_prob(x[order]), together[order], rtol=0.0, atol=1e-9)
    assert_close(torch.cat([model.log_prob(row[None]) for row in x]), together, rtol=0.0, atol=1e-9)
    assert_close(model.log_prob(x.reshape(4, 5, FEATURES)), together.reshape(4, 5), rtol=0.0, atol=1e-9)
    # Noise that rows share does not change the bound of a row beyond its usual error.
    other = torch.stack([model.log_prob_bound(x) for _ in range(20)])
    assert bool(((together - other.mean(0)).abs() < 6.0 * other.std(0) + 1e-9).all())


def test_log_prob_of_a_posterior_with_another_base_is_repeatable() -> None:
    model = small_autoencoder(posterior_options={"base": "student-t"})
    assert not isinstance(model.posterior.base, Gaussian)
    x = rows_for("logistic")
    first = model.log_prob(x)
    torch.randn(1)
    assert torch.equal(model.log_prob(x), first)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "categorical", "logistic"])
def test_shapes_and_dtypes(decoder: str) -> None:
    model = small_autoencoder(decoder, posterior="iaf", prior="realnvp")
    x = rows_for(decoder)
    assert model.elbo(x.float() if decoder == "gaussian" else x.long()).shape == (6,)
    assert model.iwae_bound(x.reshape(2, 3, FEATURES), 4).shape == (2, 3)
    assert model.encode(x).shape == (6, LATENT)
    assert model.reconstruct(x).shape == (6, FEATURES)
    drawn = model.sample(9)
    assert drawn.shape == (9, FEATURES)
    assert drawn.dtype == torch.float64
    assert not drawn.requires_grad
    model.decoder.observe(drawn)  # samples are valid rows


def test_encode_is_the_mean_of_a_gaussian_posterior() -> None:
    model, distribution = probabilistic_pca()
    x = distribution.sample((4,))
    assert_close(model.encode(x), model.encoder(x).detach())
    assert_close(model.reconstruct(x), model.decoder.mean(model.encoder(x)).detach())


def test_samples_follow_the_model() -> None:
    model, distribution = probabilistic_pca()
    x = model.sample(50_000)
    assert_close(x.mean(0), distribution.mean, rtol=0.0, atol=0.05)
    assert_close(torch.cov(x.T), distribution.covariance_matrix, rtol=0.05, atol=0.05)


def test_act_norm_is_not_initialized_from_latents(perturb: Perturb) -> None:
    """Otherwise ActNorm would change in the first log-density of training, after the sample was drawn."""
    model = small_autoencoder(posterior="iaf", prior="maf").train()
    before = [p.detach().clone() for p in model.parameters()]
    model.elbo(rows_for("logistic"), estimator="path")
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "categorical", "logistic"])
def test_a_saved_model_is_loaded_unchanged(decoder: str, tmp_path: Path, perturb: Perturb) -> None:
    from pushforward.flows.storage import ModelFileError, load, load_model, read_extra, save

    standardize = Standardize([1.0] * FEATURES, [2.0] * FEATURES)
    model = small_autoencoder(decoder, perturb, posterior="iaf", prior="nsf-c", standardize=standardize)
    save(model, tmp_path, extra={"rows": 3})
    again = load_model(tmp_path, Autoencoder)
    x = rows_for(decoder)
    assert_close(again.log_prob(x), model.eval().log_prob(x), rtol=0.0, atol=0.0)
    assert read_extra(tmp_path) == {"rows": 3}
    with pytest.raises(ModelFileError, match="expected a Flow or a Mixture; got Autoencoder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "value", "message"),
    [
        ("bernoulli", 1.5, r"BernoulliDecoder: expected 0, 1, or intensities in \[0, 1\]; got 1.5"),
        ("gaussian", math.nan, "GaussianDecoder: expected finite values; got nan"),
        ("categorical", 5.0, "CategoricalDecoder: expected integers from 0 to 4; got 5"),
        ("categorical", 0.5, "CategoricalDecoder: expected integers from 0 to 4; got 0.5"),
        ("logistic", -1.0, "LogisticDecoder: expected integers from 0 to 4; got -1"),
        ("logistic", math.nan, "LogisticDecoder: expected integers from 0 to 4; got nan"),
    ],
)
def test_wrong_values_are_errors_that_name_the_value(decoder: str, value: float, message: str) -> None:
    model = small_autoencoder(decoder)
    x = rows_for(decoder)
    x[2, 1] = value
    for call in (model.elbo, model.log_prob_bound, model.encode):
        with pytest.raises(ValueError, match=message) as caught:
            call(x)
        assert "\n" not in str(caught.value)


def mistakes() -> dict[str, tuple[str, Callable[[], object]]]:
    flow, given = build("gaussian", 2), build("gaussian", 2, 8)
    decoder, encoder = BernoulliDecoder(nn.Linear(2, 3), 3), Encoder(nn.Linear(3, 8))
    x = torch.zeros(2, FEATURES).double()
    return {
        "prior with context": ("expected a prior without context", lambda: Autoencoder(encoder, decoder, given, given)),
        "posterior without": ("expected a posterior with", lambda: Autoencoder(encoder, decoder, flow, flow)),
        "other latent": ("over 3 latent", lambda: Autoencoder(encoder, decoder, build("gaussian", 3), given)),
        "estimator of elbo": (
            "'path-wise' or 'path'; got 'dreg'",
            lambda: small_autoencoder().elbo(x, estimator="dreg"),
        ),
        "estimator of iwae": (
            "'path-wise' or 'dreg'; got 'path'",
            lambda: small_autoencoder().iwae_bound(x, estimator="path"),
        ),
        "samples": ("samples of at least 1; got 0", lambda: small_autoencoder().elbo(x, 0)),
        "shape": (r"rows of shape \(..., 4\); got \(2, 3\)", lambda: small_autoencoder().elbo(x[:, :3])),
        "network": (
            "outputs of the network",
            lambda: CategoricalDecoder(nn.Linear(2, 5), 2, values=3).mean(x[:, :2].float()),
        ),
        "encoder": (
            "output of the encoder",
            lambda: Autoencoder(nn.Linear(3, 7), decoder, flow, given).elbo(torch.zeros(1, 3)),
        ),
        "context": ("expected no context", lambda: small_autoencoder().log_prob(x, x)),
        "name": ("did you mean 'logistic'", lambda: build_autoencoder("logisitc", 3)),
        "values missing": ("the number of values", lambda: build_autoencoder("categorical", 3)),
        "values too many": ("logistic decoder only", lambda: build_autoencoder("gaussian", 3, values=3)),
        "one value": ("values of at least 2; got 1", lambda: build_autoencoder("logistic", 3, values=1)),
    }


@pytest.mark.parametrize("name", mistakes())
def test_mistakes_are_errors_with_a_clear_message(name: str) -> None:
    message, call = mistakes()[name]
    with pytest.raises(ValueError, match=message):
        call()
