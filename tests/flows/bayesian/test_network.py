"""The network that takes its weights as an argument."""

import math

import torch
from torch import nn

from pushforward.flows.bayesian.network import WeightedNetwork


def test_the_network_equals_linear_layers_of_torch() -> None:
    torch.manual_seed(0)
    network = WeightedNetwork(3, (4, 5), 2)
    weights, x = torch.randn(6, network.size, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    outputs = network(x, weights)
    assert outputs.shape == (6, 7, 2)
    for row, output in zip(weights, outputs, strict=True):
        h, position = x, 0
        for a, b in ((3, 4), (4, 5), (5, 2)):
            layer = nn.Linear(a, b).double()
            with torch.no_grad():
                layer.weight.copy_(row[position : position + a * b].reshape(a, b).T / math.sqrt(a))
                layer.bias.copy_(row[position + a * b : position + (a + 1) * b])
            position += (a + 1) * b
            h = layer(h if a == 3 else h.relu())
        torch.testing.assert_close(output, h)


def test_groups_of_weights_for_the_prior_scales() -> None:
    network = WeightedNetwork(3, (2,), 1)
    assert network.groups(each_input=False).tolist() == [0] * 6 + [1] * 2 + [2] * 2 + [3]
    assert network.groups(each_input=True).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
