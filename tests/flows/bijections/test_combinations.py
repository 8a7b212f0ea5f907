"""Chains, inverses, permutations and linear maps."""

import torch
from torch.testing import assert_close

from pushforward.flows import Chain, Inverse, LULinear, Permutation, Standardize
from tests.fixtures.bijections import Perturb, draw, made


def test_chain_applies_its_members_in_order() -> None:
    chain = Chain([Standardize([1.0], [1.0]), Standardize([0.0], [2.0])])
    assert_close(chain(torch.tensor([[5.0]]))[0], torch.tensor([[2.0]]))
    assert_close(chain.inverse(torch.tensor([[2.0]]))[0], torch.tensor([[5.0]]))


def test_inverse_of_an_inverse(perturb: Perturb) -> None:
    layer = made("MaskedAutoregressive spline 5", perturb)
    points, _ = draw(layer, 4)
    assert_close(Inverse(Inverse(layer))(points), layer(points), rtol=0, atol=0)


def test_permutation_lists_the_input_of_each_output() -> None:
    assert Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))[0].tolist() == [12.0, 10.0, 11.0]
    assert Permutation.reverse(3).order == [2, 1, 0]
    assert all(Permutation.random(2).order == [1, 0] for _ in range(8))


def test_lu_linear_is_a_matrix(perturb: Perturb) -> None:
    layer = made("LULinear 5", perturb)
    assert isinstance(layer, LULinear)
    zero = torch.zeros(5, dtype=torch.float64)
    matrix = layer(torch.eye(5, dtype=torch.float64))[0] - layer(zero)[0]
    points, _ = draw(layer, 7)
    z, log_det = layer(points)
    assert_close(z, points @ matrix + layer.bias)
    assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet.expand(7))
