"""The sliced energy distance as an objective."""

import math

import pytest
import torch

from pushforward.flows import build
from pushforward.train.objectives.energy import Energy, sliced_energy_distance, unit_vectors
from pushforward.train.objectives.likelihood import RowTensors

DOUBLE = torch.float64


def test_the_distance_equals_its_definition() -> None:
    """In one dimension, as sums over all pairs."""
    x, y = torch.randn(7, 1, dtype=DOUBLE), 1 + torch.randn(5, 1, dtype=DOUBLE)
    between = (x[:, None] - y[None]).abs().mean()
    within = [(z[:, None] - z[None]).abs().sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    found = sliced_energy_distance(x, y, torch.ones(1, 1, dtype=DOUBLE))
    assert float(found) == pytest.approx(float(2 * between - within[0] - within[1]))
    both = torch.cat([x, x], 1), torch.cat([y, y], 1)
    axes = torch.eye(2, dtype=DOUBLE)
    assert float(sliced_energy_distance(*both, axes)) == pytest.approx(float(found))


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    """Two Gaussians whose means are d apart: E|N(d, 2)| is known, and equal distributions give zero in the mean."""
    n, d = 4_000, 1.5
    x, y = torch.randn(n, 1, dtype=DOUBLE), d + torch.randn(n, 1, dtype=DOUBLE)
    line = torch.ones(1, 1, dtype=DOUBLE)

    def mean_distance(shift: float) -> float:
        s = math.sqrt(2.0)
        normal = s * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * s * s))
        return normal + shift * math.erf(shift / (s * math.sqrt(2)))

    exact = 2 * mean_distance(d) - 2 * mean_distance(0.0)
    assert float(sliced_energy_distance(x, y, line)) == pytest.approx(exact, rel=0.1)
    axes, same = torch.eye(2, dtype=DOUBLE), []
    for _ in range(200):
        first, second = torch.randn(2, 100, 2, dtype=DOUBLE)
        same.append(float(sliced_energy_distance(first, second, axes)))
    found = torch.tensor(same)
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(len(same))


def test_mle_plus_energy_is_the_weighted_sum() -> None:
    """In training and in validation: the NLL plus the weight times the distance."""
    data = RowTensors(torch.randn(40, 2)), RowTensors(torch.randn(30, 2))
    flow = build("gaussian", 2)
    both, alone = Energy(*data, 20, likelihood=True, weight=3.0), Energy(*data, 20)
    batch = both.draw(0.0)
    with torch.no_grad():
        torch.manual_seed(0)
        loss, _ = both.loss(flow, batch)
        torch.manual_seed(0)
        energy, _ = alone.loss(flow, batch)
        assert float(loss) == pytest.approx(float(-flow.log_prob(batch[0]).mean() + 3.0 * energy), rel=1e-5)
        nll = -float(flow.log_prob(data[1].x).mean())
    found = both.validate(flow)
    assert found.loss == pytest.approx(nll + 3.0 * alone.validate(flow).loss, rel=1e-5)


def test_validation_reads_rows_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pushforward.train.objectives.energy.MOST_ENERGY_ROWS", 10)
    late = torch.randn(100, 2) + torch.linspace(0, 9, 100)[:, None]
    flow = build("gaussian", 2)
    spread = Energy(RowTensors(late), RowTensors(late), 20).validate(flow).loss
    head = Energy(RowTensors(late), RowTensors(late[:10]), 20).validate(flow).loss
    assert spread > head + 1.0


def test_the_gradient_is_exact() -> None:
    x, y = torch.randn(6, 2, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE, requires_grad=True)
    directions = unit_vectors(2, 3, x)
    assert torch.allclose(directions.norm(dim=0), torch.ones(3, dtype=DOUBLE))
    assert torch.autograd.gradcheck(lambda samples: sliced_energy_distance(x, samples, directions), y)


def test_the_context_is_compared_too() -> None:
    """A flow that ignores its context has a large distance."""
    context = torch.randn(400, 1)
    data = RowTensors(context + 0.1 * torch.randn(400, 1), context)
    objective = Energy(data, data, 200)
    flow = build("gaussian", 1, 1)
    ignoring = objective.validate(flow.eval()).metrics["val/energy"]
    with torch.no_grad():
        flow.base.from_context.weight.copy_(torch.tensor([[1.0], [0.0]]))  # type: ignore[union-attr, operator]
        flow.base.log_scale.fill_(math.log(0.1))  # type: ignore[operator]
    assert objective.validate(flow).metrics["val/energy"] < 0.05 * ignoring
