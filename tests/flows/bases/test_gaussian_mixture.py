"""The mixture of Gaussians: its density, and sample gradients against closed forms."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    GaussianMixture,
)

Perturb = Callable[[nn.Module], nn.Module]
F64 = torch.float64


def test_mixture_density_is_the_sum_of_its_components(perturb: Perturb) -> None:
    base = GaussianMixture(3, 4).double()
    perturb(base)
    z = torch.randn(7, 3, dtype=F64)
    components = torch.distributions.Normal(
        base.location + base.locations * base.log_scale.exp(), (base.log_scales + base.log_scale).exp()
    )
    joint = components.log_prob(z[:, None]).sum(-1) + base.logits.log_softmax(-1)
    assert_close(base.log_prob(z), torch.logsumexp(joint, -1))


def test_mixture_gradients_have_closed_forms() -> None:
    # E z1, E z1² and E z1 z2 in terms of weights, locations and scales, by autograd of the formulas.
    base = GaussianMixture(2, 3).double()
    with torch.no_grad():
        base.logits.copy_(torch.tensor([0.5, -0.5, 0.0]))
        base.locations.copy_(torch.tensor([[-2.0, 1.0], [0.5, -1.0], [2.0, 2.0]]))
        base.log_scales.copy_(torch.tensor([[-0.5, 0.2], [0.1, -0.3], [-1.0, 0.0]]))
    own = [base.logits, base.locations, base.log_scales]
    weights, m = base.logits.softmax(-1), base.locations
    exact = [
        weights @ m[:, 0],
        weights @ (m[:, 0] ** 2 + (2 * base.log_scales[:, 0]).exp()),
        weights @ (m[:, 0] * m[:, 1]),
    ]
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda z: z[:, 0],
        lambda z: z[:, 0] ** 2,
        lambda z: z[:, 0] * z[:, 1],
    ]
    for formula, function in zip(exact, functions, strict=True):
        formulas = torch.autograd.grad(formula, own, materialize_grads=True, retain_graph=True)
        slopes = torch.cat([g.reshape(-1) for g in formulas])
        found = []
        for _ in range(40):
            value = function(base.rsample(1_000)).mean()
            found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, own)]))
        estimates = torch.stack(found)
        error = (estimates.mean(0) - slopes).abs()
        assert bool((error < 5 * estimates.std(0) / 40**0.5 + 1e-9).all())
        assert bool((estimates.std(0) / 40**0.5 < 0.2).all())


def test_mixture_gradient_of_a_single_component_is_the_reparameterization_gradient() -> None:
    base = GaussianMixture(2, 1).double()
    torch.manual_seed(0)
    z = base.rsample(50)
    z.sum().backward()
    assert base.locations.grad is not None
    assert base.log_scales.grad is not None
    assert_close(base.locations.grad, torch.full((1, 2), 50.0, dtype=F64))
    assert_close(base.log_scales.grad, z.detach().sum(0, keepdim=True))
