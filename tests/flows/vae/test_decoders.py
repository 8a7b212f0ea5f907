"""Decoders: likelihoods are probabilities, and samples follow them."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.testing import assert_close

from pushforward.flows import Standardize
from pushforward.flows.vae.decoders import (
    BernoulliDecoder,
    CategoricalDecoder,
    CountDecoder,
    Decoder,
    GaussianDecoder,
    LogisticDecoder,
)
from tests.fixtures.autoencoders import (
    LATENT,
)


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


def test_logistic_probabilities_are_differences_of_the_distribution_function() -> None:
    decoder = LogisticDecoder(nn.Linear(1, 2), 1, values=6).double()
    z = torch.tensor([[0.7]]).double()
    location, log_scale = (t.item() for t in decoder.location_and_log_scale(z))
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


def test_intensities_are_binarised() -> None:
    x = torch.tensor([[0.0, 0.2, 0.5, 0.8, 1.0]])
    assert BernoulliDecoder(nn.Linear(1, 5), 5).observe(x).tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0]]
    drawn = BernoulliDecoder(nn.Linear(1, 5), 5, stochastic=True).observe(x.expand(20_000, 5))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert_close(drawn.mean(0), x[0], rtol=0.0, atol=0.02)
