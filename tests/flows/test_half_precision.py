"""Models whose weights are in half precision."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pushforward.flows import Autoencoder, Flow
from tests.fixtures.models import MODELS, Model, given, inputs_of

Perturb = Callable[[nn.Module], nn.Module]
HALF = [torch.float16, torch.bfloat16]
EXACT = [name for name in MODELS if not name.endswith("decoder")]


def results(model: Model, points: Tensor, context: Tensor | None) -> dict[str, tuple[Tensor, ...]]:
    """The results of every method of a model, by name."""
    found: dict[str, Tensor | tuple[Tensor, ...]] = {"log_prob": model.log_prob(*given(points, context))}
    found["sample"] = model.sample((), context)
    if isinstance(model, Autoencoder):
        found["elbo"], found["bound"] = model.elbo(points), model.iwae_bound(points, 4)
        found["encode"], found["reconstruct"] = model.encode(points), model.reconstruct(points)
    else:
        found["latents"] = model.latents(points, context)
        found["rsample"] = model.rsample_and_log_prob((), context)
    if isinstance(model, Flow):
        found["transform"] = model.transform_to_base(points, context)
        found["score"] = model.score_function(points, context)
        found["frozen"] = model.frozen_log_prob(points, context)
        found["path"] = model.rsample_and_log_prob((), context, path=True)
    return {name: value if isinstance(value, tuple) else (value,) for name, value in found.items()}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_works_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype)
    points, context = inputs_of(model)
    for method, values in results(model, points, context).items():
        for value in values:
            assert value.dtype == dtype, method
            assert bool(value.isfinite().all()), method
    loss = model(*given(points, context)).mean()
    if loss.requires_grad:
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_densities_and_inverses_are_those_of_float32_up_to_rounding(
    name: str, dtype: torch.dtype, perturb: Perturb
) -> None:
    exact = MODELS[name]().eval()
    perturb(exact, 0.05)  # type: ignore[call-arg]
    model = copy.deepcopy(exact).to(dtype)
    points, context = inputs_of(exact, 20)
    tolerance = 40 * torch.finfo(dtype).eps
    expected = exact.log_prob(points, context)
    assert float((model.log_prob(points, context) - expected).abs().max()) < tolerance * (1.0 + expected.abs().max())
    if isinstance(model, Flow) and isinstance(exact, Flow):
        z = model.transform_to_base(points, context)
        back = model.bijection.inverse(z, model.embed(context))[0]
        assert float((back - points).abs().max()) < tolerance
        latents, expected_latents = model.latents(points, context), exact.latents(points, context)
        assert float((latents - expected_latents).abs().max()) < 2 * tolerance
