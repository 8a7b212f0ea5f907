"""The flows over weights: how they start, and their gradient estimators."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pushforward.flows import Flow
from pushforward.flows.bayesian.posterior import coupled, mean_field


def test_the_flow_starts_as_the_mean_field() -> None:
    torch.manual_seed(0)
    location, scale, points = torch.randn(7), torch.rand(7) + 0.1, torch.randn(20, 7)
    torch.testing.assert_close(
        coupled(location, scale).log_prob(points), mean_field(location, scale).log_prob(points), rtol=1e-4, atol=1e-3
    )


def perturbed_posterior(perturb: Callable[[nn.Module], nn.Module]) -> Flow:
    flow = perturb(coupled(torch.zeros(4), torch.full((4,), 0.8), rank=2, hidden=6)).double()
    assert isinstance(flow, Flow)
    return flow


def gradients(posterior: Flow, gradient: str, target: Callable[[Tensor], Tensor], repeats: int) -> Tensor:
    """Gradients ``(repeats, parameters)`` of E[log q - target], of 500 samples each."""
    found = []
    for _ in range(repeats):
        posterior.zero_grad()
        weights, log_q = posterior.rsample_and_log_prob(500, path=gradient == "path")
        (log_q - target(weights)).mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in posterior.parameters() if p.grad is not None]))
    return torch.stack(found)


def test_both_gradients_agree_in_the_mean(perturb: Callable[[nn.Module], nn.Module]) -> None:
    posterior = perturbed_posterior(perturb)

    def target(weights: Tensor) -> Tensor:
        return -0.5 * (weights - 0.3).square().sum(-1) + torch.sin(weights).sum(-1)

    torch.manual_seed(1)
    path = gradients(posterior, "path", target, 100)
    path_wise = gradients(posterior, "path-wise", target, 100)
    error = (path.var(0) / len(path) + path_wise.var(0) / len(path_wise)).sqrt()
    assert path.mean(0).norm() > 20 * error.norm() / math.sqrt(len(error))  # the gradient is not zero
    assert float(((path.mean(0) - path_wise.mean(0)).abs() / error.clamp_min(1e-6)).max()) < 4.5


def test_the_path_gradient_has_no_noise_where_the_posterior_is_exact(
    perturb: Callable[[nn.Module], nn.Module],
) -> None:
    posterior = perturbed_posterior(perturb)
    exact = copy.deepcopy(posterior).requires_grad_(False)
    torch.manual_seed(0)
    path = gradients(posterior, "path", exact.log_prob, 2)
    assert float(path.abs().max()) < 1e-9
    assert float(gradients(posterior, "path-wise", exact.log_prob, 2).abs().max()) > 1e-3
