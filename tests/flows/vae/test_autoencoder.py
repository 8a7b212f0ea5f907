"""Autoencoders: bounds against exact likelihoods, gradients against each other, decoders against probability."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.evaluate import nll
from pushforward.evaluate.plots import autoencoder as autoencoder_plots
from pushforward.flows import Chain, Flow, Gaussian, Standardize, build
from pushforward.flows.vae.autoencoder import CHUNK, Autoencoder, Estimator, build_autoencoder
from pushforward.flows.vae.decoders import (
    BernoulliDecoder,
    CategoricalDecoder,
    CountDecoder,
    Decoder,
    GaussianDecoder,
    LogisticDecoder,
)
from pushforward.flows.vae.encoder import Encoder
from pushforward.train.defaults import TrainOptions
from pushforward.train.maximize import maximize_bound
from pushforward.train.objectives.bound import MOST_VALIDATION_ROWS, BoundObjective
from pushforward.train.trainer import DivergedError

Perturb = Callable[[nn.Module], nn.Module]
FEATURES, LATENT = 4, 2


def linear(inputs: int, outputs: int, weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def probabilistic_pca() -> tuple[Autoencoder, torch.distributions.MultivariateNormal]:
    """A linear-Gaussian autoencoder with its exact posterior, and the exact law of its rows.

    With z ~ N(0, I) and x = W z + m + s e, the posterior is N(M W^T (x - m) / s^2, M), M = (I + W^T W / s^2)^-1.
    """
    w, m, s = torch.randn(FEATURES, LATENT).double(), torch.randn(FEATURES).double(), 0.7
    decoder = GaussianDecoder(linear(LATENT, FEATURES, w, m), FEATURES, least_scale=0.0).double()
    spread = torch.linalg.inv(torch.eye(LATENT).double() + w.T @ w / s**2)
    gain = spread @ w.T / s**2
    prior = Flow(Gaussian(LATENT, trainable=False), Chain([], features=LATENT)).double()
    posterior = build("gaussian", LATENT, LATENT, base="full").double()
    encoder = linear(FEATURES, LATENT, gain, -gain @ m)
    with torch.no_grad():
        decoder.log_scale.fill_(math.log(s))
        posterior.base.initialize(torch.zeros(LATENT).double(), spread)
        assert isinstance(posterior.base, Gaussian)
        assert posterior.base.from_context is not None
        posterior.base.from_context.weight.copy_(torch.eye(2 * LATENT, LATENT))  # the context is the mean
    covariance = w @ w.T + s**2 * torch.eye(FEATURES).double()
    law = torch.distributions.MultivariateNormal(m, covariance, validate_args=False)  # or it refuses no rows
    return Autoencoder(encoder, decoder, prior, posterior), law


def small(decoder: str = "logistic", perturb: Perturb | None = None, **options: Any) -> Autoencoder:
    values = 5 if decoder in ("categorical", "logistic") else None
    sizes: dict[str, Any] = {"latent": LATENT, "values": values, "hidden": 8, "blocks": 1}
    inner = {"layers": 2, "hidden": 8, "blocks": 1}
    flows: dict[str, Any]
    flows = {f"{name}_options": inner for name in ("posterior", "prior") if options.get(name, "gaussian") != "gaussian"}
    model = build_autoencoder(decoder, FEATURES, **(sizes | flows | options)).double()
    if perturb is not None:
        perturb(model)
    return model


def rows_for(decoder: str, n: int = 6) -> Tensor:
    if decoder == "gaussian":
        return torch.randn(n, FEATURES).double()
    return torch.randint(0, 2 if decoder == "bernoulli" else 5, (n, FEATURES)).double()


# --- The bounds ---------------------------------------------------------------------------------------------------


def test_elbo_with_the_exact_posterior_is_the_log_likelihood() -> None:
    model, law = probabilistic_pca()
    x = law.sample((50,))
    for bound in (model.elbo(x), model.elbo(x, 3, estimator="path"), model(x), model.iwae_bound(x, 4)):
        assert_close(bound, law.log_prob(x))
    assert_close(model.log_prob_bound(x, 7), law.log_prob(x))


def base_of(model: Autoencoder) -> Gaussian:
    base = model.posterior.base
    assert isinstance(base, Gaussian)
    return base


def about_its_mean(model: Autoencoder) -> torch.distributions.MultivariateNormal:
    """The posterior, moved to the mean of the exact one."""
    base = base_of(model)
    location, columns = (
        base.push(e, torch.zeros(LATENT).double()).detach() for e in (torch.zeros(LATENT), torch.eye(LATENT))
    )
    return torch.distributions.MultivariateNormal(location, scale_tril=(columns - location).T)


def worsen(model: Autoencoder, size: float = 0.3) -> Autoencoder:
    with torch.no_grad():
        base_of(model).location.add_(size)
        base_of(model).log_scale.add_(size)
    return model


def test_more_samples_tighten_the_bound_towards_the_log_likelihood() -> None:
    model, law = probabilistic_pca()
    x = law.sample((200,))
    gaps = [float((law.log_prob(x) - worsen(model, 0.5).log_prob_bound(x, 1)).mean())]
    gaps += [float((law.log_prob(x) - model.log_prob_bound(x, k)).mean()) for k in (4, 32, 2_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    assert gaps[-1] == pytest.approx(0.0, abs=0.01)


def test_elbo_falls_short_by_the_divergence_of_the_posterior() -> None:
    model, law = probabilistic_pca()
    x = law.sample((3,))
    exact = about_its_mean(model)
    gap = law.log_prob(x) - worsen(model).elbo(x, 40_000)
    divergence = torch.distributions.kl_divergence(about_its_mean(model), exact).expand(3)
    assert_close(gap.detach(), divergence, rtol=0.03, atol=0.0)


def test_beta_weighs_prior_and_posterior_alone() -> None:
    model, law = probabilistic_pca()
    x = law.sample((5,))
    torch.manual_seed(1)
    z, log_q = model.posterior.rsample_and_log_prob(1, model.encoder(x))
    for beta in (0.0, 0.3):
        torch.manual_seed(1)
        wanted = model.decoder.log_prob(x, z) + beta * (model.prior.log_prob(z) - log_q)
        assert_close(model.elbo(x, beta=beta), wanted[0])


@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK + 3])
def test_streamed_bounds_are_those_in_one_piece(rows: int) -> None:
    model, law = probabilistic_pca()
    x = law.sample((rows,))
    # With the exact posterior every weight is p(x), whatever the noise and however it is divided.
    assert_close(model.log_prob_bound(x, 3 if rows > 7 else 3_000), law.log_prob(x))
    assert model.log_prob_bound(x.reshape(rows, 1, FEATURES), 2).shape == (rows, 1)


def test_scores_are_repeatable_and_leave_the_generator_alone() -> None:
    model, law = probabilistic_pca()
    worsen(model)
    x = law.sample((9,))
    before = torch.get_rng_state()
    first = model.log_prob(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(1)
    assert torch.equal(model.log_prob(x), first)
    assert nll(model, x).nll == pytest.approx(-float(first.mean()))


@pytest.mark.parametrize(
    ("posterior", "options"), [("gaussian", {}), ("gaussian", {"base": "low-rank"}), ("iaf", {}), ("nsf-c", {})]
)
def test_a_row_has_the_same_score_whatever_comes_with_it(
    posterior: str, options: dict[str, Any], perturb: Perturb
) -> None:
    sizes = {} if posterior == "gaussian" else {"layers": 2, "hidden": 8, "blocks": 1}
    model = small(perturb=perturb, posterior=posterior, posterior_options=sizes | options)
    assert isinstance(model.posterior.base, Gaussian)
    x = rows_for("logistic", 20)  # more pairs with latent points than are evaluated at a time
    together = model.log_prob(x)
    order = torch.randperm(len(x))
    assert_close(model.log_prob(x[order]), together[order], rtol=0.0, atol=1e-9)
    assert_close(torch.cat([model.log_prob(row[None]) for row in x]), together, rtol=0.0, atol=1e-9)
    assert_close(model.log_prob(x.reshape(4, 5, FEATURES)), together.reshape(4, 5), rtol=0.0, atol=1e-9)
    # Shared among rows, the noise makes the same bound: every row has its own error, as large as ever.
    other = torch.stack([model.log_prob_bound(x) for _ in range(20)])
    assert bool(((together - other.mean(0)).abs() < 6.0 * other.std(0) + 1e-9).all())


def test_scores_of_a_posterior_with_another_base_are_repeatable() -> None:
    model = small(posterior_options={"base": "student-t"})
    assert not isinstance(model.posterior.base, Gaussian)
    x = rows_for("logistic")
    first = model.log_prob(x)
    torch.randn(1)
    assert torch.equal(model.log_prob(x), first)


def test_validation_rows_are_spread_over_the_table() -> None:
    rows = torch.arange(2 * MOST_VALIDATION_ROWS).double()[:, None].expand(-1, FEATURES)
    kept = BoundObjective(rows, rows, 10).validation
    assert len(kept) == MOST_VALIDATION_ROWS
    assert float(kept[0, 0]) == 0.0
    assert_close(kept, rows[torch.linspace(0, len(rows) - 1, len(kept)).round().long()])
    few = rows[:7]
    assert torch.equal(BoundObjective(few, few, 10).validation, few)


def test_a_single_validation_row_has_no_standard_error() -> None:
    model, law = probabilistic_pca()
    x = law.sample((1,))
    found = BoundObjective(x, x, 1).validate(model)
    assert found.loss == pytest.approx(-float(law.log_prob(x)))
    assert math.isnan(found.metrics["val/bound_se"])


# --- Gradients ----------------------------------------------------------------------------------------------------


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
    model, law = probabilistic_pca()
    worsen(model)
    x = law.sample((1,))
    rows = x.expand(64, FEATURES)  # gradients are summed over them: more draws in one call
    total = gradients(model, rows, of, "total", samples, 80, beta)
    other = gradients(model, rows, of, estimator, samples, 80, beta)
    assert_same_mean(total, other)
    if of != "decoder":
        assert float(other.mean(0).abs().max()) > 5 * float(other.std(0).max()) / math.sqrt(len(other))  # no zeros


def test_gradient_of_the_elbo_is_that_of_the_closed_form() -> None:
    """The mean of either estimator against finite differences of the exact ELBO of a linear-Gaussian model."""
    model, law = probabilistic_pca()
    worsen(model)
    x = law.sample((1,))
    base = base_of(model)

    def exact() -> float:
        # E[log p(x|z)] of a Gaussian z: the mean's log-likelihood less a trace; and minus a KL to N(0, I).
        with torch.no_grad():
            mean = model.encoder(x)[0] + base.location
            factor = (base.push(torch.eye(LATENT).double(), torch.zeros(LATENT).double()) - base.location).T
            assert isinstance(model.decoder, GaussianDecoder)
            assert isinstance(model.decoder.net, nn.Linear)
            w, s = model.decoder.net.weight, model.decoder.scale
            fit = model.decoder.log_prob(x[0], mean) - 0.5 * ((w @ factor) / s[:, None]).square().sum()
            kl = 0.5 * (factor.square().sum() + mean.square().sum() - LATENT) - factor.diagonal().log().sum()
            return float(fit - kl)

    for estimator in ("total", "path"):
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
    model, law = probabilistic_pca()
    x = law.sample((20,))
    for of in ("encoder", "posterior"):
        assert float(gradients(model, x, of, estimator, samples, 3).abs().max()) < 1e-9
        assert float(gradients(model, x, of, "total", samples, 3).abs().max()) > 0.1  # its variance does not


@pytest.mark.parametrize("posterior", ["gaussian", "iaf", "nsf-c", "maf"])
def test_flow_posteriors_have_path_gradients(posterior: str, perturb: Perturb) -> None:
    """At the same noise, the total gradient is the path's plus the score; the values are the same."""
    model = small(perturb=perturb, posterior=posterior)
    x = rows_for("logistic")
    parameters = [p for name, p in model.named_parameters() if name.startswith(("encoder", "posterior"))]

    def seeded(estimator: Estimator) -> tuple[Tensor, tuple[Tensor, ...]]:
        torch.manual_seed(5)
        bound = model.elbo(x, estimator=estimator)
        return bound.detach(), torch.autograd.grad(bound.sum(), parameters)

    (total_value, total), (path_value, path) = seeded("total"), seeded("path")
    assert_close(total_value, path_value)
    torch.manual_seed(5)
    context = model.encoder(x)
    z = model.posterior.rsample(1, context).detach()
    score = torch.autograd.grad(model.posterior.log_prob(z, context).sum(), parameters)
    for of_total, of_path, of_score in zip(total, path, score, strict=True):
        assert_close(of_total, of_path - of_score, rtol=1e-6, atol=1e-8)
    assert max(float(g.abs().max()) for g in score) > 1e-3


def test_dreg_weighs_decoder_and_prior_as_the_bound_does() -> None:
    model = small(prior="realnvp")
    x = rows_for("logistic")
    for of in ("decoder", "prior"):
        found = []
        for estimator in ("total", "dreg"):
            torch.manual_seed(3)
            found.append(gradient(model, model.iwae_bound(x, 5, estimator=estimator), of))
        assert_close(found[0], found[1])


# --- Decoders -----------------------------------------------------------------------------------------------------


def decoders() -> list[Decoder]:
    def net(outputs: int) -> nn.Linear:
        return nn.Linear(LATENT, outputs)

    return [
        BernoulliDecoder(net(3), 3).double(),
        CategoricalDecoder(net(3 * 4), 3, values=4).double(),
        LogisticDecoder(net(3 * 2), 3, values=4).double(),
        LogisticDecoder(net(3 * 2), 3, values=2).double(),
    ]


@pytest.mark.parametrize("decoder", decoders(), ids=lambda d: type(d).__name__)
def test_discrete_likelihoods_sum_to_one_and_samples_follow_them(decoder: Decoder) -> None:
    values = decoder.values if isinstance(decoder, CountDecoder) else 2
    everything = torch.tensor(list(itertools.product(range(values), repeat=3))).double()
    for z in torch.randn(3, 1, LATENT).double() * 3.0:
        probability = decoder.log_prob(decoder.observe(everything), z).exp().detach()
        assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
        assert_close(decoder.mean(z[0]).detach(), probability @ everything)
        drawn = decoder.sample(z.expand(20_000, LATENT))
        assert drawn.shape == (20_000, 3)
        share = (drawn[:, None] == everything).all(-1).double().mean(0)
        assert float((share - probability).abs().max()) < 4.5 * math.sqrt(0.25 / 20_000)


def test_logistic_masses_are_differences_of_the_distribution_function() -> None:
    decoder = LogisticDecoder(nn.Linear(1, 2), 1, values=6).double()
    z = torch.tensor([[0.7]]).double()
    location, log_scale = (t.item() for t in decoder._location_and_log_scale(z))
    edges = np.array([-np.inf, *(np.arange(5) + 0.5), np.inf])
    wanted = np.diff(stats.logistic(location, math.exp(log_scale)).cdf(edges))
    assert_close(decoder.log_probabilities(z)[0, 0].exp().detach(), torch.from_numpy(wanted))


def test_logistic_likelihoods_stay_finite_far_away() -> None:
    decoder = LogisticDecoder(nn.Linear(1, 2), 1, values=17)
    z = torch.tensor([[1e4], [-1e4]])
    for value in (0.0, 8.0, 16.0):
        log_prob = decoder.log_prob(torch.full((2, 1), value), z)
        assert bool(log_prob.isfinite().all())
        assert bool(torch.autograd.grad(log_prob.sum(), decoder.net.weight)[0].isfinite().all())  # type: ignore[arg-type]


def test_gaussian_decoder_is_in_data_units() -> None:
    standardize = Standardize([3.0, -50.0], [0.1, 20.0])
    decoder = GaussianDecoder(nn.Linear(LATENT, 2), 2, standardize=standardize, least_scale=0.1).double()
    z = torch.randn(1, LATENT).double()
    mean, scale = decoder.mean(z)[0], 1.1 * torch.tensor([0.1, 20.0]).double()
    x = mean + torch.randn(5, 2).double() * scale
    assert_close(decoder.log_prob(x, z), torch.distributions.Normal(mean, scale).log_prob(x).sum(-1))
    drawn = decoder.sample(z.expand(40_000, LATENT))
    assert_close(drawn.mean(0), mean.detach(), rtol=0.0, atol=float(scale[1]) * 0.03)
    assert_close(drawn.std(0), scale, rtol=0.03, atol=0.0)


def test_intensities_become_coins() -> None:
    x = torch.tensor([[0.0, 0.2, 0.5, 0.8, 1.0]])
    assert BernoulliDecoder(nn.Linear(1, 5), 5).observe(x).tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0]]
    drawn = BernoulliDecoder(nn.Linear(1, 5), 5, stochastic=True).observe(x.expand(20_000, 5))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert_close(drawn.mean(0), x[0], rtol=0.0, atol=0.02)


# --- The model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "categorical", "logistic"])
def test_shapes_and_dtypes(decoder: str) -> None:
    model = small(decoder, posterior="iaf", prior="realnvp")
    x = rows_for(decoder)
    assert model.elbo(x.float() if decoder == "gaussian" else x.long()).shape == (6,)
    assert model.iwae_bound(x.reshape(2, 3, FEATURES), 4).shape == (2, 3)
    assert model.encode(x).shape == (6, LATENT)
    assert model.reconstruct(x).shape == (6, FEATURES)
    drawn = model.sample(9)
    assert drawn.shape == (9, FEATURES)
    assert drawn.dtype == torch.float64
    assert not drawn.requires_grad
    model.decoder.observe(drawn)  # what is drawn are rows


def test_encode_is_the_mean_of_a_gaussian_posterior() -> None:
    model, law = probabilistic_pca()
    x = law.sample((4,))
    assert_close(model.encode(x), model.encoder(x).detach())
    assert_close(model.reconstruct(x), model.decoder.mean(model.encoder(x)).detach())


def test_samples_follow_the_model() -> None:
    model, law = probabilistic_pca()
    x = model.sample(50_000)
    assert_close(x.mean(0), law.mean, rtol=0.0, atol=0.05)
    assert_close(torch.cov(x.T), law.covariance_matrix, rtol=0.05, atol=0.05)


def test_flows_start_where_they_were_built(perturb: Perturb) -> None:
    """ActNorm would set itself at the first log-density of training, between a sample and its density."""
    model = small(posterior="iaf", prior="maf").train()
    before = [p.detach().clone() for p in model.parameters()]
    model.elbo(rows_for("logistic"), estimator="path")
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "categorical", "logistic"])
def test_saved_models_come_back(decoder: str, tmp_path: Path, perturb: Perturb) -> None:
    from pushforward.flows.storage import ModelFileError, load, load_model, read_extra, save

    standardize = Standardize([1.0] * FEATURES, [2.0] * FEATURES)
    model = small(decoder, perturb, posterior="iaf", prior="nsf-c", standardize=standardize)
    save(model, tmp_path, extra={"rows": 3})
    again = load_model(tmp_path, Autoencoder)
    x = rows_for(decoder)
    assert_close(again.log_prob(x), model.eval().log_prob(x), rtol=0.0, atol=0.0)
    assert read_extra(tmp_path) == {"rows": 3}
    with pytest.raises(ModelFileError, match="expected a Flow or a Mixture; got Autoencoder"):
        load(tmp_path)


# --- What is refused ----------------------------------------------------------------------------------------------


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
def test_wrong_values_are_named(decoder: str, value: float, message: str) -> None:
    model = small(decoder)
    x = rows_for(decoder)
    x[2, 1] = value
    for call in (model.elbo, model.log_prob_bound, model.encode):
        with pytest.raises(ValueError, match=message) as caught:
            call(x)
        assert "\n" not in str(caught.value)


def refused() -> dict[str, tuple[str, Callable[[], object]]]:
    flow, given = build("gaussian", 2), build("gaussian", 2, 8)
    decoder, encoder = BernoulliDecoder(nn.Linear(2, 3), 3), Encoder(nn.Linear(3, 8))
    x = torch.zeros(2, FEATURES).double()
    return {
        "prior with context": ("expected a prior without context", lambda: Autoencoder(encoder, decoder, given, given)),
        "posterior without": ("expected a posterior with", lambda: Autoencoder(encoder, decoder, flow, flow)),
        "other latent": ("over 3 latent", lambda: Autoencoder(encoder, decoder, build("gaussian", 3), given)),
        "estimator of elbo": ("'total' or 'path'; got 'dreg'", lambda: small().elbo(x, estimator="dreg")),
        "estimator of iwae": ("'total' or 'dreg'; got 'path'", lambda: small().iwae_bound(x, estimator="path")),
        "samples": ("samples of at least 1; got 0", lambda: small().elbo(x, 0)),
        "shape": (r"rows of shape \(..., 4\); got \(2, 3\)", lambda: small().elbo(x[:, :3])),
        "network": (
            "outputs of the network",
            lambda: CategoricalDecoder(nn.Linear(2, 5), 2, values=3).mean(x[:, :2].float()),
        ),
        "encoder": (
            "output of the encoder",
            lambda: Autoencoder(nn.Linear(3, 7), decoder, flow, given).elbo(torch.zeros(1, 3)),
        ),
        "context": ("expected no context", lambda: small().log_prob(x, x)),
        "name": ("did you mean 'logistic'", lambda: build_autoencoder("logisitc", 3)),
        "values missing": ("the number of values", lambda: build_autoencoder("categorical", 3)),
        "values too many": ("logistic decoder only", lambda: build_autoencoder("gaussian", 3, values=3)),
        "one value": ("values of at least 2; got 1", lambda: build_autoencoder("logistic", 3, values=1)),
    }


@pytest.mark.parametrize("name", refused())
def test_mistakes_are_named(name: str) -> None:
    message, call = refused()[name]
    with pytest.raises(ValueError, match=message):
        call()


# --- Fitting ------------------------------------------------------------------------------------------------------


def mixture(n: int, seed: int) -> Tensor:
    """Rows of two kinds: all features low, or all high."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.where(torch.rand(n, 1, generator=generator) < 0.5, 0.15, 0.85)
    return torch.binomial(torch.full((n, FEATURES), 4.0), centre.expand(n, FEATURES), generator=generator)


def true_nll(x: Tensor) -> float:
    binomial = [torch.distributions.Binomial(4, torch.tensor(p)).log_prob(x).sum(-1) for p in (0.15, 0.85)]
    return -float((torch.logaddexp(*binomial) - math.log(2)).mean())


@pytest.mark.parametrize(
    ("objective", "samples", "estimator"),
    [
        pytest.param("elbo", 1, "total", marks=pytest.mark.slow),
        ("elbo", 1, "path"),
        pytest.param("iwae", 5, "total", marks=pytest.mark.slow),
        ("iwae", 5, "dreg"),
    ],
)
def test_a_fit_comes_close_to_the_truth(objective: Any, samples: int, estimator: Estimator) -> None:
    train, validation, test = (mixture(2_000, seed) for seed in (1, 2, 11))
    model = build_autoencoder("categorical", FEATURES, latent=1, values=5, hidden=16, blocks=1)
    settings = TrainOptions(steps=160, batch_size=128, learning_rate=2e-2)
    rows: list[tuple[str, int, dict[str, float]]] = []
    fitted = maximize_bound(
        model,
        train,
        validation[:200],
        settings,
        bound=objective,
        samples=samples,
        estimator=estimator,
        validation_samples=8,
        listeners={"log": lambda kind, step, seconds, metrics: rows.append((kind, step, metrics))},
    ).progress
    reached = -float(model.log_prob(test).mean())
    assert true_nll(test) - 0.02 < reached < true_nll(test) + 0.25
    assert (fitted.step, fitted.stop_reason, model.training) == (160, "budget", False)
    losses = [metrics["val/loss"] for kind, _, metrics in rows if kind == "validation"]
    assert fitted.best_loss == min(losses)
    torch.manual_seed(0)
    assert -float(model.log_prob_bound(validation[:200], 8).double().mean()) == fitted.best_loss  # it is kept
    assert [step for kind, step, _ in rows if kind == "train"] == list(range(25, 161, 25))


def test_fits_are_repeatable_and_leave_the_generator_alone() -> None:
    x = mixture(200, 1)
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        model = build_autoencoder("logistic", FEATURES, latent=1, values=5, hidden=8, blocks=1, dropout=0.1)
        before = torch.get_rng_state()
        maximize_bound(model, x, x[:50], TrainOptions(steps=20), seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model.log_prob(x))
    assert torch.equal(*found)


def test_fits_stop_when_told_to_and_by_the_clock() -> None:
    x = mixture(100, 1)
    model = small("categorical").float()
    answers = iter(["", "", "", "told"])
    seen: list[tuple[str, int]] = []
    listeners = {"stop": lambda: next(answers), "log": lambda kind, step, *_: seen.append((kind, step))}
    told = maximize_bound(model, x, x, TrainOptions(steps=500), listeners=listeners).progress
    assert seen == [("validation", 0), ("validation", 3)]  # also what it ends with is a candidate
    assert (told.step, told.stop_reason) == (3, "told")
    timed = maximize_bound(model, x, x, TrainOptions(seconds=0.3)).progress
    assert timed.stop_reason == "budget"
    assert 0.3 <= timed.seconds < 5.0
    stale = maximize_bound(model, x, x[:1], TrainOptions(steps=400, learning_rate=0.3, patience=0.1)).progress
    assert stale.stop_reason == "patience"


def test_a_fit_that_cannot_stay_finite_says_so() -> None:
    model = small("gaussian")
    assert isinstance(model.decoder, GaussianDecoder)
    with torch.no_grad():
        model.decoder.log_scale.fill_(math.nan)
    x = rows_for("gaussian", 50)
    with pytest.raises(DivergedError, match="loss is not finite"):
        maximize_bound(model, x, x, TrainOptions(steps=100))
    mistakes: list[dict[str, Any]] = [{"bound": "elob"}, {"kl_warmup": 2.0}]
    for options in mistakes:
        (wrong,) = options
        with pytest.raises(ValueError, match=wrong):
            maximize_bound(model, x, x, TrainOptions(steps=1), **options)
    with pytest.raises(ValueError, match="got 0 and 50"):
        maximize_bound(model, x[:0], x, TrainOptions(steps=1))


@pytest.mark.slow
def test_a_linear_gaussian_fit_reaches_the_exact_likelihood() -> None:
    _, law = probabilistic_pca()
    x = law.sample((1_000,))
    model = build_autoencoder("gaussian", FEATURES, latent=LATENT, hidden=16, blocks=1).double()
    settings = TrainOptions(steps=1_500, batch_size=100, learning_rate=1e-2)
    maximize_bound(model, x, x[:100], settings, estimator="path", validation_samples=8)
    fresh = law.sample((2_000,))
    assert -0.01 < float((law.log_prob(fresh) - model.log_prob(fresh)).mean()) < 0.06


# --- Pictures -----------------------------------------------------------------------------------------------------


def pictures() -> dict[str, Callable[[Path], None]]:
    images, centres, names = torch.rand(30, 12), torch.randn(30, 3), ["a", "b", "c"] * 10
    return {
        "plane": lambda path: autoencoder_plots.latent_plane(centres[:, :2], path),
        "axes": lambda path: autoencoder_plots.latent_plane(centres, path, labels=names, prior=torch.randn(9, 3)),
        "line": lambda path: autoencoder_plots.latent_plane(centres[:, :1], path, labels=torch.arange(30) % 10),
        "few": lambda path: autoencoder_plots.reconstructions(images[:3], images[3:6], path, shape=(3, 4)),
        "many": lambda path: autoencoder_plots.reconstructions(images, images.numpy(), path, shape=(3, 4)),
        "samples": lambda path: autoencoder_plots.sample_grid(images[:, :9], path, limits=(0.0, 2.0)),
    }


@pytest.mark.parametrize("name", pictures())
def test_pictures_are_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    pictures()[name](path)
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 5.0


def test_images_stand_where_they_belong(tmp_path: Path) -> None:
    """A row that is dark at the left only, above one that is dark at the right only."""
    left, right = np.zeros((1, 16)), np.zeros((1, 16))
    left[0, ::4], right[0, 3::4] = 1.0, 1.0
    autoencoder_plots.reconstructions(left, right, tmp_path / "picture.png", limits=(0.0, 1.0))
    dark = np.asarray(Image.open(tmp_path / "picture.png").convert("L")) < 10
    rows, columns = np.nonzero(ndimage.binary_erosion(dark, np.ones((9, 9))))  # without letters
    middle = (rows.min() + rows.max()) / 2
    assert columns[rows < middle].max() < columns[rows > middle].min()


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "picture.png", torch.rand(4, 6)
    cases: list[tuple[str, Callable[[], None]]] = [
        ("square images, or a shape; got 6", lambda: autoencoder_plots.sample_grid(rows, path)),
        ("rows of 2 x 2 values; got 6", lambda: autoencoder_plots.sample_grid(rows, path, shape=(2, 2))),
        (r"\(4\); got 3", lambda: autoencoder_plots.reconstructions(rows, rows[:3], path, shape=(2, 3))),
        ("4 labels; got 2", lambda: autoencoder_plots.latent_plane(rows, path, labels=[1, 2])),
        ("6 features; got 5", lambda: autoencoder_plots.latent_plane(rows, path, prior=rows[:, :5])),
        ("two finite rows; got 0", lambda: autoencoder_plots.latent_plane(rows * math.nan, path)),
        ("different labels; got 30", lambda: autoencoder_plots.latent_plane(rows[[0] * 30], path, labels=range(30))),
        (r"shape \(rows, features\); got \(6,\)", lambda: autoencoder_plots.latent_plane(rows[0], path)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert not path.exists()
