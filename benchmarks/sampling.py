"""What does a sample of an autoregressive flow cost, beside its density? And beside nflows' sample?

    python benchmarks/sampling.py [--features 43] [--points 10000] [--repeats 7]

Prints versions, machine, medians with the range over repeats, and ratios. The two calls alternate within a repeat, so
that a busy machine slows both.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NFlow
from nflows.transforms import (
    CompositeTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    ReversePermutation,
)

from pushforward.flows import build


def seconds(call: Callable[..., object], *arguments: object) -> float:
    before = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - before


def row(name: str, times: list[float]) -> str:
    return f"{name:<28} {1e3 * statistics.median(times):10.1f} {1e3 * min(times):10.1f} {1e3 * max(times):10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=43)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--nflows", action="store_true", help="time nflows' sampling too (minutes)")
    arguments = parser.parse_args()
    features, points = arguments.features, arguments.points
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs, {platform.machine()}")
    print(f"{features} features, {points} points, {arguments.layers} layers, 128 hidden, 2 blocks, 8 bins, float32\n")
    print(f"{'milliseconds':<28} {'median':>10} {'least':>10} {'most':>10}")
    torch.manual_seed(0)
    for name in ("maf", "nsf-ar"):
        flow = build(name, features, layers=arguments.layers).eval()
        with torch.no_grad():
            for parameter in flow.parameters():  # away from the identity, where splines do nothing
                parameter.add_(0.02 * torch.randn_like(parameter))
            x = torch.randn(points, features)
            flow.log_prob(x), flow.sample(points)
            scores, samples = [], []
            for _ in range(arguments.repeats):
                scores.append(seconds(flow.log_prob, x))
                samples.append(seconds(flow.sample, points))
        print(row(f"{name} log_prob", scores))
        print(row(f"{name} sample", samples))
        ratio = statistics.median(s / p for s, p in zip(samples, scores, strict=True))
        print(f"{name} sample / log_prob{'':<8} {ratio:10.2f}")
    if arguments.nflows:
        layers = []
        for _ in range(arguments.layers):
            layers += [
                ReversePermutation(features),
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    features, 128, num_bins=8, tails="linear", tail_bound=5.0, num_blocks=2
                ),
            ]
        peer = NFlow(CompositeTransform(layers), StandardNormal([features])).eval()
        with torch.no_grad():
            print(row("nflows nsf-ar log_prob", [seconds(peer.log_prob, x) for _ in range(3)]))
            print(row("nflows nsf-ar sample", [seconds(peer.sample, points) for _ in range(2)]))


if __name__ == "__main__":
    main()
