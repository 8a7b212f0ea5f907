"""How much time does the path gradient take, in one pass and in two, compared with the path-wise gradient?

    python benchmarks/path_gradient.py [--quick] [--threads 1] [--repeats 15] [--out]

A step is zero_grad, samples of the flow with their log-densities, the mean of log q - log p, and backward; the target
is a standard Gaussian, whose cost is negligible. Three gradients take turns: path-wise, path in one pass
(``rsample_and_log_prob(path=True)``), path in two (``frozen_log_prob`` of ``rsample``), each with the kernels in C and
with torch's operations (``native.disabled()``). Ratios are medians and quartiles of the ratios within the rounds.
"""

import contextlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import measure
import torch
from measure import Target, Times
from torch import Tensor

from pushforward.flows import Flow, build
from pushforward.flows.kernels import native

COUPLINGS, AUTOREGRESSIVE = ("realnvp", "nsf-c"), ("maf", "nsf-ar", "iaf")
BOUNDS = dict.fromkeys(COUPLINGS, 1.6) | dict.fromkeys(AUTOREGRESSIVE, 2.0)
PLAIN, ONE, TWO = "path-wise", "path, one pass", "path, two passes"
KERNELS, OPERATIONS = "kernels in C", "torch's operations"


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--flows", nargs="+", choices=tuple(BOUNDS), default=list(BOUNDS))
    parser.add_argument("--features", nargs="+", type=int, default=[2, 32, 64])
    parser.add_argument("--batch", type=int, default=512, help="samples of a step")
    parser.add_argument(
        "--seconds-each", type=float, default=10.0, help="time limit of the repeats of one configuration"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        for name, value in {"features": [2, 32], "repeats": 5, "seconds_each": 3.0}.items():
            if f"--{name.replace('_', '-')}" not in sys.argv:
                setattr(arguments, name, value)
    facts = measure.machine(arguments.threads)
    measure.print_header(facts)
    print(f"5 layers, 128 hidden, 2 residual blocks, 8 bins, float32, {arguments.batch} points a step; milliseconds\n")
    records: list[dict[str, Any]] = []
    targets: list[Target] = []
    for how in (KERNELS, OPERATIONS):
        rows = []
        for name in arguments.flows:
            for features in arguments.features:
                calls = _steps(name, features, arguments.batch)
                with contextlib.nullcontext() if how == KERNELS else native.disabled():
                    times = measure.interleave(calls, repeats=arguments.repeats, budget_seconds=arguments.seconds_each)
                rows.append([f"{name}, D={features}", *_cells(times)])
                records += [
                    {"flow": name, "features": features, "points": arguments.batch, "how": how, "step": step}
                    | {"median": t.median, "times_path_wise": _ratio(t, times[PLAIN]), **asdict(t)}
                    for step, t in times.items()
                ]
                what = f"path gradient in one pass, {name}, D={features}, {how}: times path-wise"
                targets.append(Target(what, times[ONE].ratio(times[PLAIN]), BOUNDS[name]))
        columns = [
            how,
            PLAIN,
            ONE,
            TWO,
            "one pass / path-wise",
            "quartiles",
            "two passes / path-wise",
            "quartiles",
            "rounds",
        ]
        measure.table(columns, rows)
    measure.print_targets(targets)
    measure.write_json(arguments.out, "path_gradient", facts, records, targets)


def _steps(name: str, features: int, points: int) -> dict[str, Callable[[], object]]:
    """Return the three steps of a flow that is not the identity."""
    torch.manual_seed(1)
    flow = build(name, features)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        flow.log_prob(torch.randn(points, features))  # initialises layers that depend on data
    flow.eval()

    def one_pass(path: bool) -> Tensor:
        x, log_q = flow.rsample_and_log_prob(points, path=path)
        return (log_q + 0.5 * x.square().sum(-1)).mean()

    def two_passes() -> Tensor:
        x = flow.rsample(points)
        return (flow.frozen_log_prob(x) + 0.5 * x.square().sum(-1)).mean()

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: _differentiate(flow, loss)

    return {PLAIN: step(lambda: one_pass(path=False)), ONE: step(lambda: one_pass(path=True)), TWO: step(two_passes)}


def _differentiate(flow: Flow, loss: Callable[[], Tensor]) -> None:
    for parameter in flow.parameters():
        parameter.grad = None
    loss().backward()


def _cells(times: dict[str, Times]) -> list[str]:
    plain = times[PLAIN]
    out = [measure.milliseconds(t.median) for t in times.values()]
    for name in (ONE, TWO):
        low, middle, high = _ratio(times[name], plain) or [float("nan")] * 3
        out += [f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
    return [*out, str(len(plain.seconds))]


def _ratio(times: Times, plain: Times) -> list[float] | None:
    """Lower quartile, median and upper quartile of the ratios within the rounds."""
    ratios = [a / b for a, b in zip(times.seconds, plain.seconds, strict=False)]
    return statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else None


if __name__ == "__main__":
    main()
