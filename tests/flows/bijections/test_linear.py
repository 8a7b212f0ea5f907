"""Linear bijections: the matrix of the low-rank update."""

import pytest
import torch

from pushforward.flows import LowRankLinear, check_bijection
from tests.fixtures.bijections import Perturb


@pytest.mark.parametrize("rank", [1, 3])
def test_the_low_rank_map_is_a_bijection(rank: int, perturb: Perturb) -> None:
    layer = perturb(LowRankLinear(5, rank))
    assert isinstance(layer, LowRankLinear)
    check_bijection(layer)
    eye = torch.eye(5)
    torch.testing.assert_close(layer.inverse(eye)[0].T, eye + layer.left @ layer.right.T)
    with pytest.raises(ValueError, match="expected a rank from 1 to 5; got 6"):
        LowRankLinear(5, 6)
