"""nflows transforms in Flow and Chain, and bijections in nflows: the same densities, for any leading dimensions."""

from collections.abc import Callable

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.nn.nets import ResidualNet as NflowsResidualNet
from nflows.transforms import (
    CompositeTransform,
    LULinear,
    MaskedAffineAutoregressiveTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    Transform,
)
from torch import nn
from torch.testing import assert_close

from pushforward.flows import ActNorm, Chain, Flow, Gaussian, NflowsTransform, Permutation, build

pytestmark = [
    # nflows 0.14 uses a function that torch deprecates with a plain UserWarning.
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning"),
]

Perturb = Callable[[nn.Module], nn.Module]


def spline_coupling(context: int = 0) -> Transform:
    return PiecewiseRationalQuadraticCouplingTransform(
        mask=[1, -1, 1],
        transform_net_create_fn=lambda inputs, outputs: NflowsResidualNet(
            inputs, outputs, hidden_features=8, context_features=context or None
        ),
        num_bins=4,
        tails="linear",
        tail_bound=3.0,
    )


TRANSFORMS: dict[str, Callable[[int], Transform]] = {
    "spline coupling": spline_coupling,
    "affine autoregressive": lambda c: MaskedAffineAutoregressiveTransform(3, 8, context_features=c or None),
    "LULinear": lambda c: LULinear(3),
    "RandomPermutation": lambda c: RandomPermutation(3),
    "composite": lambda c: CompositeTransform([RandomPermutation(3), spline_coupling(c), LULinear(3)]),
}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_nflows_transform_in_a_flow(name: str, context: int, perturb: Perturb) -> None:
    transform = TRANSFORMS[name](context).eval()
    perturb(transform)
    nflows_flow = NflowsFlow(transform, StandardNormal([3])).eval()
    flow = Flow(Gaussian(3), NflowsTransform(transform, 3, context)).eval()
    x = torch.randn(2, 5, 3)
    given = torch.randn(2, 5, context) if context else None
    expected = nflows_flow.log_prob(x.reshape(10, 3), None if given is None else given.reshape(10, context))
    assert_close(flow(x, given), expected.reshape(2, 5))
    assert_close(flow(x[0, 0], None if given is None else given[0, 0]), expected[0])
    sample, log_prob = flow.sample_and_log_prob(4, None if given is None else given[0])
    assert sample.shape == ((4, 5, 3) if context else (4, 3))
    assert_close(flow(sample, None if given is None else given[0]), log_prob, rtol=1e-3, atol=1e-3)  # float32 splines


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_wrapped_automatically(name: str, perturb: Perturb) -> None:
    transform = TRANSFORMS[name](0).eval()
    perturb(transform)
    x = torch.randn(5, 3)
    expected = NflowsFlow(transform, StandardNormal([3])).log_prob(x)
    assert_close(Flow(Gaussian(3), transform)(x), expected)
    assert_close(Flow(Gaussian(3), Chain([transform], features=3))(x), expected)
    chain = Chain([Permutation([1, 2, 0]), transform, ActNorm(3).eval()])
    assert_close(Flow(Gaussian(3), chain)(x), NflowsFlow(transform, StandardNormal([3])).log_prob(x[:, [1, 2, 0]]))
    assert chain(x[0])[0].shape == (3,)
    assert chain(x[:0])[1].shape == (0,)
    assert_close(chain.inverse(chain(x)[0])[0], x, rtol=1e-3, atol=1e-4)


def test_context_goes_only_to_the_members_that_declare_it(perturb: Perturb) -> None:
    conditional = build("nsf-c", 3, 2, layers=1, hidden=8).bijection
    plain = NflowsTransform(MaskedAffineAutoregressiveTransform(3, 8), 3)
    chain = Chain([plain, conditional])
    perturb(chain)
    assert chain.context == 2
    z, log_det = chain(torch.randn(3), torch.randn(4, 2))
    assert (z.shape, log_det.shape) == ((4, 3), (4,))


def test_a_whole_flow_as_an_nflows_transform(perturb: Perturb) -> None:
    flow = build("nsf-ar", 3, 2, layers=2, hidden=8)
    perturb(flow.bijection)
    nflows_flow = NflowsFlow(CompositeTransform([flow.bijection, RandomPermutation(3)]), StandardNormal([3]))
    x, given = torch.randn(6, 3), torch.randn(6, 2)
    assert_close(nflows_flow.log_prob(x, given), flow(x, given))
    samples, log_prob = nflows_flow.sample_and_log_prob(4, given)
    assert samples.shape == (6, 4, 3)
    assert_close(log_prob, flow(samples, given[:, None]), rtol=1e-3, atol=1e-3)  # float32, inverse and forward
