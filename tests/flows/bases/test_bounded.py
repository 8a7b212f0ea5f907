"""Uniform, Gamma and Beta bases: densities, latents and gradients against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pushforward.flows import (
    Beta,
    Gamma,
    Uniform,
)

F64 = torch.float64


def test_uniform() -> None:
    base = Uniform(2, low=-1.0, width=4.0)
    z = torch.tensor([[0.0, 2.9], [-1.1, 0.0], [0.0, 3.1]])
    assert_close(base.log_prob(z).detach(), torch.tensor([-2 * math.log(4.0), -torch.inf, -torch.inf]))
    assert bool(base.log_prob(base.sample(100_000)).isfinite().all())
    assert_close(base.latents(torch.ones(2)).detach(), torch.zeros(2))


def test_gamma() -> None:
    base = Gamma(2, 2.5, 0.7).double()
    z = torch.tensor([[0.3, 7.0], [1e-8, 40.0], [-1.0, 1.0], [0.0, 1.0]], dtype=F64)
    np.testing.assert_allclose(
        base.log_prob(z).detach(), stats.gamma.logpdf(z.numpy(), 2.5, scale=1 / 0.7).sum(-1), rtol=1e-6
    )
    np.testing.assert_allclose(
        base.latents(z[:2]), stats.norm.ppf(stats.gamma.cdf(z[:2].numpy(), 2.5, scale=1 / 0.7)), rtol=1e-5
    )
    base.initialize(torch.tensor([2.0, 5.0], dtype=F64), torch.tensor([3.0, 0.5], dtype=F64).diag())
    points = base.rsample(200_000)
    assert_close(points.mean(0).detach(), torch.tensor([2.0, 5.0], dtype=F64), rtol=0, atol=0.02)
    assert_close(points.var(0).detach(), torch.tensor([3.0, 0.5], dtype=F64), rtol=0.03, atol=0)
    # E x = k / r: its derivative by log k and by -log r is E x itself.
    points.mean(0).sum().backward()
    for parameter, sign in ((base.log_concentration, 1), (base.log_rate, -1)):
        assert parameter.grad is not None
        assert_close(sign * parameter.grad, torch.tensor([2.0, 5.0], dtype=F64), rtol=0, atol=0.03)
    with pytest.raises(ValueError, match=r"Gamma: expected means above 0; got \[-1"):
        base.initialize(-torch.ones(2), torch.eye(2))


def test_beta() -> None:
    base = Beta(2, 2.5, 0.7).double()
    z = torch.tensor([[0.3, 0.9], [1e-8, 1 - 1e-8], [-0.1, 0.5], [0.5, 1.0]], dtype=F64)
    found = base.log_prob(z).detach()
    np.testing.assert_allclose(found[:2], stats.beta.logpdf(z[:2].numpy(), 2.5, 0.7).sum(-1), rtol=1e-6)
    assert_close(found[2:], torch.full((2,), -torch.inf, dtype=F64))
    np.testing.assert_allclose(base.latents(z[:2]), stats.norm.ppf(stats.beta.cdf(z[:2].numpy(), 2.5, 0.7)), rtol=1e-4)
    base.initialize(torch.tensor([0.2, 0.5], dtype=F64), torch.tensor([0.01, 0.2], dtype=F64).diag())
    points = base.rsample(200_000)
    assert_close(points.mean(0).detach(), torch.tensor([0.2, 0.5], dtype=F64), rtol=0, atol=0.005)
    assert_close(points.var(0).detach(), torch.tensor([0.01, 0.2], dtype=F64), rtol=0.03, atol=0)
    # E x = a / (a + b): its derivative by log a is a b / (a + b)², and by log b the negative.
    points.mean(0).sum().backward()
    a, b = base.log_a.exp().detach(), base.log_b.exp().detach()
    assert base.log_a.grad is not None
    assert base.log_b.grad is not None
    assert_close(base.log_a.grad, a * b / (a + b) ** 2, rtol=0, atol=0.005)
    assert_close(base.log_b.grad, -a * b / (a + b) ** 2, rtol=0, atol=0.005)
    with pytest.raises(ValueError, match="variances below mean"):
        base.initialize(torch.full((2,), 0.5), torch.eye(2))
