"""Restricted supports opened up: the logit, the logarithm, and laws pushed through them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from pushforward.flows import (
    Base,
    Beta,
    Bijection,
    Chain,
    Flow,
    Gamma,
    Gaussian,
    Log,
    Logit,
    LULinear,
    Probit,
    TransformedDistribution,
    Uniform,
    build,
    check_bijection,
    load,
    save,
)

F64 = torch.float64
Perturb = Callable[[nn.Module], nn.Module]


def test_contract_on_narrow_supports() -> None:
    share = torch.rand(64, 2, dtype=F64).clamp(1e-6, 1 - 1e-6)
    check_bijection(Logit(2), share)
    check_bijection(Logit(2, [-3.0, 10.0], [1.0, 10.5]), torch.tensor([-3.0, 10.0]) + torch.tensor([4.0, 0.5]) * share)
    check_bijection(Log(2), share * 50)
    check_bijection(Log(2, low=[-1.0, 3.0]), share + torch.tensor([-1.0, 3.0]))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_digits_at_the_ends(dtype: torch.dtype) -> None:
    tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    x = torch.tensor([[tiny], [1e-20], [0.5], [1 - eps]], dtype=dtype)
    exact = [math.log(v) - math.log1p(-v) for v in x[:, 0].tolist()]
    z, log_det = Logit(1)(x)
    assert_close(z[:, 0], torch.tensor(exact, dtype=dtype))
    assert_close(log_det, torch.tensor([-math.log(v) - math.log1p(-v) for v in x[:, 0].tolist()], dtype=dtype))
    far = torch.tensor([[-1e4], [-90.0], [-20.0], [20.0], [90.0], [1e4]], dtype=dtype)
    for bijection in (Logit(1), Logit(1, -3.0, 5.0), Log(1), Log(1, low=2.0)):
        back, slope = bijection.inverse(far)
        again, log_det = bijection(back)
        assert bool(torch.stack([back[:, 0], slope, again[:, 0], log_det]).isfinite().all())
        (low, high) = bijection.domain[0]
        assert bool(((back > low) & (back < high)).all())
        assert bool((back.diff(dim=0) >= 0).all())
    small = torch.tensor([[-math.exp(-20.0)]], dtype=dtype)  # beside an end that is zero
    assert_close(Logit(1, -1.0, 0.0).inverse(far[3:4])[0], small, rtol=1e-6, atol=0)
    # What rounds in the point does not round in the log-determinant.
    assert_close(Logit(1).inverse(far)[1], -far[:, 0].abs())
    assert_close(Log(1).inverse(far)[1], far[:, 0])


@pytest.mark.parametrize("outside", [-0.5, 0.0, 1.0, 7.0, -math.inf, math.inf])
def test_outside_there_is_no_density(outside: float) -> None:
    x = torch.tensor([[0.5, 0.5], [outside, 0.5]], requires_grad=True)
    flow = Flow(Gaussian(2), Chain([Logit(2), LULinear(2)]))
    density = flow.log_prob(x)
    assert density[0].isfinite()
    assert density[1] == -torch.inf
    density[0].backward(retain_graph=True)
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    if outside <= 0:
        flow = Flow(Gaussian(2), Chain([Log(2), LULinear(2)]))
        assert flow.log_prob(x)[1] == -torch.inf
        assert flow.log_prob(x)[0].isfinite()


def test_a_flow_on_a_box_integrates_to_one(perturb: Perturb) -> None:
    inner = build("nsf-ar", 2, layers=1, hidden=8)
    flow = Flow(inner.base, Chain([Logit(2, [0.0, -2.0], [1.0, 2.0]), inner.bijection])).double().eval()
    perturb(flow)
    axis = (torch.arange(400, dtype=F64) + 0.5) / 400
    grid = torch.cartesian_prod(axis, 4 * axis - 2)
    assert float(flow.log_prob(grid).exp().mean().detach()) * 4 == pytest.approx(1.0, abs=3e-3)
    points = flow.sample(1000)
    assert bool(((points[:, 0] > 0) & (points[:, 0] < 1) & (points[:, 1].abs() < 2)).all())


class Plain(Base):
    """The law without its own forms for a bijection: the general way, by points of the support."""

    def __init__(self, law: Base) -> None:
        super().__init__(law.features)
        self.law = law

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.law.log_prob(z)

    def rsample(self, n: int | tuple[int, ...] = (), context: Tensor | None = None) -> Tensor:
        return self.law.rsample(n)

    @property
    def support(self) -> list[tuple[float, float]] | None:
        return self.law.support


PAIRS: dict[str, tuple[Callable[[], Base], Callable[[], Bijection]]] = {
    "beta": (lambda: Beta(2, 1.5, 3.0), lambda: Logit(2)),
    "gamma": (lambda: Gamma(2, 1.5, 3.0), lambda: Log(2)),
    "uniform": (lambda: Uniform(2, low=-1.0, width=3.0, trainable=False), lambda: Logit(2, -1.0, 2.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_own_forms_equal_the_general_ones(name: str) -> None:
    law, bijection = (PAIRS[name][0](), PAIRS[name][1]())
    own, general = (
        TransformedDistribution(law.double(), bijection).double(),
        TransformedDistribution(Plain(law), bijection).double(),
    )
    y = 3 * torch.randn(50, 2, dtype=F64)
    assert_close(own.log_prob(y), general.log_prob(y))
    a, b = own.sample(4000), general.sample(4000)
    for column in range(2):
        assert stats.ks_2samp(a[:, column], b[:, column]).pvalue > 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_own_forms_stay_finite_where_points_round(name: str) -> None:
    pushed = TransformedDistribution(PAIRS[name][0](), PAIRS[name][1]())
    y = torch.tensor([-200.0, -40.0, 40.0, 80.0])[:, None].repeat(1, 2).requires_grad_()
    density = pushed.log_prob(y)
    density.sum().backward()
    assert bool(density.isfinite().all())
    assert y.grad is not None
    assert bool(y.grad.isfinite().all())
    assert bool((y.grad[:2] > 0).all())
    assert bool((y.grad[2:] < 0).all())


def test_pushed_moves_and_scales() -> None:
    pushed = TransformedDistribution(Beta(1, 2.0, 2.0), Logit(1), context=1).double()
    with torch.no_grad():
        pushed.location.fill_(3.0)
        pushed.log_scale.fill_(math.log(2.0))
    z, context = torch.tensor([[4.0]], dtype=F64), torch.zeros(1, 1, dtype=F64)
    x = 1 / (1 + math.exp(-0.5))
    exact = stats.beta.logpdf(x, 2.0, 2.0) + math.log(x * (1 - x)) - math.log(2.0)
    assert float(pushed.log_prob(z, context).detach()) == pytest.approx(exact, rel=1e-7)


def test_probit_pushes_the_uniform_law_to_a_gaussian() -> None:
    bijection = Probit(2, [0.0, -2.0], [1.0, 2.0])
    assert bijection.domain == [(0.0, 1.0), (-2.0, 2.0)]
    pushed = TransformedDistribution(Uniform(2, trainable=False), Probit(2)).double()
    y = torch.randn(50, 2, dtype=F64)
    assert_close(pushed.log_prob(y), Gaussian(2).double().log_prob(y))
    for column in pushed.sample(4000).T:
        assert stats.kstest(column.detach().numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("kind", [Logit, Probit])
def test_a_box_is_rebuilt_from_its_file(kind: type[Logit] | type[Probit], tmp_path: Path) -> None:
    save(Flow(Gaussian(2), kind(2, [0.0, -2.0], [1.0, 2.0])), tmp_path)
    box = load(tmp_path).bijection
    assert type(box) is kind
    assert box.config() == {"features": 2, "low": [0.0, -2.0], "high": [1.0, 2.0]}


def test_a_trainable_law_of_a_pushed_one_learns() -> None:
    pushed = TransformedDistribution(Beta(2, 2.0, 2.0), Logit(2))
    pushed.rsample(7).square().sum().backward()
    for name, parameter in pushed.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.all()), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logit(2, 1.0, [2.0, 1.0]), "Logit: expected every low below its high; got [1.0, 1.0] and [2.0, 1.0]"),
        (lambda: Probit(1, 1.0, 1.0), "Probit: expected every low below its high; got [1.0] and [1.0]"),
        (lambda: Logit(2, high=math.inf), "Logit: expected high as one finite number or 2 of them; got inf"),
        (lambda: Log(2, low=[0.0]), "Log: expected low as one finite number or 2 of them; got [0.0]"),
        (
            lambda: TransformedDistribution(Beta(2), Logit(3)),
            "TransformedDistribution: expected a bijection of 2 features without context; got 3, context 0",
        ),
        (
            lambda: TransformedDistribution(Gamma(1), Logit(1)),
            "TransformedDistribution: expected a distribution on the bijection's domain [(0.0, 1.0)]; got [(0.0, inf)]",
        ),
        (
            lambda: TransformedDistribution(Gamma(1), Probit(1, -1.0, 2.0)),
            "TransformedDistribution: expected a distribution on the bijection's domain "
            "[(-1.0, 2.0)]; got [(0.0, inf)]",
        ),
        (
            lambda: TransformedDistribution(Uniform(1), Logit(1)),
            "TransformedDistribution: expected a distribution on the bijection's domain [(0.0, 1.0)]; "
            "got one that its parameters move",
        ),
        (
            lambda: TransformedDistribution(Gaussian(1, 2), LULinear(1)),
            "Gaussian: expected a law without context here; got context 2",
        ),
    ],
)
def test_message(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert str(error.value) == message
