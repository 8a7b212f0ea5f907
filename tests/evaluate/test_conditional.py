"""Quantiles and means of one column given others: where there are none, an error names the row."""

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from pushforward.evaluate.conditional import mean, quantiles
from pushforward.evaluate.likelihood import UndefinedDensityError


class Normal(nn.Module):
    """A normal distribution with the context as mean and its exponential as standard deviation."""

    context = 1

    def latents(self, x: Tensor, context: Tensor) -> Tensor:
        return (x - context) * torch.exp(-context)


def test_quantiles_and_means() -> None:
    context = np.array([[-1.0], [0.0], [20.0]])
    scale = np.exp(context)
    found = quantiles(Normal(), context, [0.05, 0.9], (-1.0, 1.0))
    np.testing.assert_allclose(found, context + scale * ndtri([0.05, 0.9]), rtol=1e-9)
    np.testing.assert_allclose(mean(Normal(), context, (-1.0, 1.0)) / scale[:, 0], (context / scale)[:, 0], atol=1e-5)


@pytest.mark.parametrize("far", [200.0, 1e10, np.nan])
@pytest.mark.parametrize("row", [0, 3, 9_999])
def test_a_row_without_quantiles_is_named_across_blocks(far: float, row: int) -> None:
    """The search does not reach the quantiles of a standard deviation of e**200; that of e**1e10 has a flat CDF."""
    context = np.zeros((10_000, 1))
    context[row] = far
    message = rf"^the density given row {row + 1} has no finite quantile within reach: the given values lie too far"
    for levels in ([0.1, 0.5, 0.9], [0.9]):
        with pytest.raises(UndefinedDensityError, match=message):
            quantiles(Normal(), context, levels, (-1.0, 1.0))


def test_a_row_without_a_mean_is_named_across_blocks() -> None:
    context = np.zeros((400, 1))
    context[300] = 200.0
    with pytest.raises(UndefinedDensityError, match=r"^the density given row 301 has no finite quantile"):
        mean(Normal(), context, (-1.0, 1.0))
