"""Step, log_prob and sample on a CUDA device: time, rows per second, kernels per call, share of the matrix rate.

    python benchmarks/gpu.py [--quick] [--flows nsf-ar] [--features 8 43] [--batches 512 4096] [--compile] [--out]

Without a CUDA device it prints a message and ends. Times are between CUDA events on the current stream, after a
synchronisation, launches included, because they are most of the cost on a GPU. torch.profiler counts the kernels of one
call after the warm-up; copies and fills are counted separately. The matrix rate is that of float32 products of two
square matrices on the same device with torch's defaults. The share is the floating-point operations per second of the
six linear layers of every conditioner (forward and backward in a step) divided by that rate.
``--device cpu`` runs everything without a GPU, to check the script; its numbers have no meaning.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import measure
import rivals
import torch
from measure import Times
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

OPERATIONS = ("step", "log_prob", "sample")
PRODUCTS = "matrix products"


FITS = (("tf32", False), ("bf16", False), ("tf32", True), ("bf16", True))
"""Precision of the step of a fit, and whether layers are compiled; the row ``pushforward`` is float32 and eager."""


def main() -> None:
    parser = measure.parser(__doc__, repeats=20)
    parser.add_argument("--flows", nargs="+", choices=rivals.FLOWS, default=list(rivals.FLOWS))
    parser.add_argument("--features", nargs="+", type=int, default=[8, 43])
    parser.add_argument("--batches", nargs="+", type=int, default=[512, 4096, 32768])
    parser.add_argument("--rivals", nargs="+", choices=rivals.PEERS, default=["nflows", "nflows-fused", "zuko"])
    parser.add_argument("--sample-points", nargs="+", type=int, default=[512, 10_000])
    parser.add_argument("--compile", action="store_true", help="also rows of pushforward with compiled layers")
    parser.add_argument(
        "--seconds-each", type=float, default=15.0, help="time limit of the repeats of one configuration"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only checks this script")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu: no CUDA device; nothing measured")
        return
    if arguments.quick:
        for name, value in {"flows": ["nsf-ar"], "batches": [512], "sample_points": [512]}.items():
            if f"--{name.replace('_', '-')}" not in sys.argv:
                setattr(arguments, name, value)
        arguments.repeats, arguments.seconds_each = 5, 4.0
    device = arguments.device
    facts = measure.machine(arguments.threads, ["nflows", "zuko", "normflows", "torchflows"]) | {
        "device": _device(device)
    }
    measure.print_header(facts)
    print("device: " + ", ".join(f"{key} {value}" for key, value in facts["device"].items()))
    peers = rivals.available(arguments.rivals)
    rate = _product_rate(device)
    facts["matrix_product_flops_per_second"] = rate
    print(f"measured rate of float32 matrix products: {rate / 1e12:.3g} TFLOP/s\n")

    records: list[dict[str, Any]] = []
    for flow in arguments.flows:
        for features in arguments.features:
            _cells(flow, features, peers, rate, arguments, records)
    measure.write_json(arguments.out, "gpu", facts, records, [])


def _cells(
    flow: str,
    features: int,
    peers: list[str],
    rate: float,
    arguments: argparse.Namespace,
    records: list[dict[str, Any]],
) -> None:
    device = arguments.device
    shapes = rivals.conditioner_shapes(flow, features)
    torch.manual_seed(1)
    points = torch.randn(max(arguments.batches), features, device=device)
    built: dict[str, rivals.Rival] = {}
    for name in ["pushforward", *peers]:
        try:
            rival = rivals.build(name, flow, features, away=0.02, device=device)
            rival.log_prob(points[:512])  # initialises layers that depend on data
        except Exception as error:
            print(f"{name} cannot run {flow} of {features} features here: {' '.join(str(error).split())[:100]}\n")
        else:
            built[name] = rival
    for operation in ("sample", "log_prob", "step"):
        for rows in arguments.sample_points if operation == "sample" else arguments.batches:
            calls: dict[str, Callable[[], object]] = {}
            for name, rival in built.items():
                if operation != "step" and name == "nflows-fused":
                    continue
                rival.module.train(operation == "step")
                if operation == "step":
                    calls[name] = rival.step(points[:rows])
                else:
                    calls[name] = rival.scoring(points[:rows]) if operation == "log_prob" else rival.sampling(rows)
            backward = operation == "step"
            if backward:
                for precision, compiled in FITS if arguments.compile else FITS[:2]:
                    label = f"pushforward, {precision}{', compiled' if compiled else ''}"
                    calls[label] = _fitting(built["pushforward"], points[:rows], precision, compiled)
            calls[PRODUCTS] = rivals.products(shapes, rows, backward=backward, device=device)
            all_times = measure.interleave(
                calls,
                repeats=arguments.repeats,
                warmups=5,
                budget_seconds=arguments.seconds_each,
                clock=_event_clock if device == "cuda" else None,
            )
            flops = rivals.product_flops(shapes, rows, backward=backward)
            what = {"operation": operation, "flow": flow, "features": features, "rows": rows}
            lines = []
            for name, times in all_times.items():
                kernels = _kernels(calls[name], device) if not times.error else None
                record = _record(what | {"rival": name}, times, all_times["pushforward"], kernels, flops, rate)
                record["parameters"] = built[name].size if name in built else None
                records.append(record)
                lines.append(_line(record, times))
            columns = ["", "parameters", "first call", "warm-up", "median", "quartiles", "times ours"]
            columns += ["points/s", "kernels", "copies, fills", "share of rate"]
            measure.table(columns, lines, title=f"{operation}, {flow}, {features} features, {rows} rows: milliseconds")


def _fitting(rival: rivals.Rival, points: torch.Tensor, precision: str, compiled: bool) -> Callable[[], None]:
    """Return a step as in ``pushforward fit``, in a precision, with or without compiled layers."""
    from pushforward.train.device import StepExecutor
    from pushforward.train.options import TrainOptions

    settings = TrainOptions(steps=10_000, precision=precision, compile="on" if compiled else "off")
    steps = StepExecutor(rival.module, settings, lambda text: print(text, file=sys.stderr))
    optimizer = rival.optimizer(1e-4)
    update = rival.updating(optimizer)

    def differentiate() -> None:
        optimizer.zero_grad(set_to_none=True)
        (-rival.log_prob(points).mean()).backward()

    def call() -> None:
        steps.run(differentiate)
        update()

    return call


def _record(
    what: dict[str, Any], times: Times, ours: Times, kernels: tuple[int, int] | None, flops: float, rate: float
) -> dict[str, Any]:
    return what | {
        "median": times.median,
        "times_ours": times.ratio(ours),
        "points_per_second": what["rows"] / times.median,
        "kernels": kernels[0] if kernels else None,
        "copies_and_fills": kernels[1] if kernels else None,
        "share_of_rate": flops / times.median / rate,
        **asdict(times),
    }


def _line(record: dict[str, Any], times: Times) -> list[str]:
    return [
        record["rival"],
        "" if record["parameters"] is None else f"{record['parameters']:,}",
        measure.milliseconds(times.first_seconds),
        measure.milliseconds(times.warmup_seconds),
        measure.milliseconds(times.median),
        measure.spread(times),
        f"{record['times_ours']:.2f}",
        f"{record['points_per_second']:,.0f}",
        "-" if record["kernels"] is None else str(record["kernels"]),
        "-" if record["copies_and_fills"] is None else str(record["copies_and_fills"]),
        f"{100 * record['share_of_rate']:.1f} %",
    ]


def _event_clock(call: Callable[[], object], number: int) -> float:
    """Seconds between two CUDA events around the calls, with an idle device before and after."""
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(number):
        call()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * start.elapsed_time(end)


def _kernels(call: Callable[[], object], device: str) -> tuple[int, int] | None:
    """Number of kernels of one call, and of its copies and fills; None without a CUDA device."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    # User annotations such as "Optimizer.step#Adam.step" are on the timeline of the device too, but are no kernels.
    ran = [
        event.name
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
        and "#" not in event.name
    ]
    others = [name for name in ran if name.startswith(("Memcpy", "Memset"))]
    return len(ran) - len(others), len(others)


def _product_rate(device: str) -> float:
    """Floating-point operations per second of a large square product, the median of several."""
    side = 8192 if device == "cuda" else 512
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    out = torch.empty_like(a)
    times = measure.interleave(
        {"product": lambda: torch.mm(a, b, out=out)},
        repeats=9,
        warmups=5,
        budget_seconds=5.0,
        clock=_event_clock if device == "cuda" else None,
    )["product"]
    return 2.0 * side**3 / times.median


def _device(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"name": "cpu (a dry run)"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "float32_precision": torch.get_float32_matmul_precision(),
    }


if __name__ == "__main__":
    main()
