"""How long would the published number of steps of each recipe take? On synthetic data of the same shape.

    python benchmarks/recipes.py [--quick] [--threads 2] [--device cuda] [--out]
    python benchmarks/recipes.py nsf-ar/power maf/gas --repeats 30 --steps 10

The loop is that of ``pushforward fit`` with the options of the recipe, precision and compilation included, stopped
after ``--repeats`` rounds of ``--steps`` steps. The data are samples of a mixture of eight Gaussians, with as many
training rows and columns as the published set. The median is over the rounds after the warm-up (``--warmup``, which
includes compilation and is reported); a validation is timed separately. Hours are steps times the median, plus the
validations, without checkpoints, pictures and final scores.
"""

import argparse
import copy
import itertools
import time
from dataclasses import replace
from typing import Any

import measure
import torch
from measure import Times

SHAPES = {
    "power": (1_659_917, 6),
    "gas": (852_174, 8),
    "hepmass": (315_123, 21),
    "miniboone": (29_556, 43),
    "bsds300": (1_000_000, 63),
}
"""Training rows and columns of the published sets."""

_COLUMNS = ("", "parameters", "rows", "columns", "batch", "warm-up s", "step ms", "quartiles", "rows/s")
_COLUMNS += ("validation ms", "steps", "hours")


def main() -> None:
    from pushforward.config.recipe import recipe_names

    known = recipe_names()
    parser = measure.parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="RECIPE", help="recipes, such as nsf-ar/power (default: all)")
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--warmup", type=int, default=3, help="rounds of the warm-up")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--seconds-each",
        type=float,
        default=60.0,
        help="no new round begins after this time, but there are at least three",
    )
    parser.add_argument("--rows", type=int, help="largest number of training rows")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"unknown recipe {unknown[0]!r}; known: {', '.join(known)}")
    if arguments.quick:
        arguments.repeats, arguments.steps, arguments.warmup = 3, 2, 1
        arguments.seconds_each, arguments.rows = 5.0, arguments.rows or 20_000
        arguments.names = arguments.names or [name for name in known if name.endswith("/miniboone")]
    facts = measure.machine(arguments.threads)
    from pushforward.train.device import choose_device

    device = choose_device(arguments.device)
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    measure.print_header(facts)
    print(f"device: {facts['device']}\n")
    records, lines = [], []
    for name in arguments.names or known:
        record = measure_recipe(name, device, arguments)
        if record is None:
            print(f"{name}: left out, the shape of its data is unknown\n")
            continue
        records.append(record)
        lines.append(_line(record))
        print(" | ".join(lines[-1]), flush=True)
    print()
    if lines:
        measure.table(_COLUMNS, lines, title="steps as `pushforward fit` takes them; hours for the published number")
    measure.write_json(arguments.out, "recipes", facts, records, [])


def measure_recipe(name: str, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Measure a recipe; None if the shape of its data is unknown."""
    from pushforward.config.read import load_config
    from pushforward.train.architecture import build_model
    from pushforward.train.callbacks import Callback
    from pushforward.train.data import MAX_VALIDATION_ROWS
    from pushforward.train.defaults import resolve
    from pushforward.train.gaussian import initialize_base
    from pushforward.train.objectives.likelihood import Likelihood, RowTensors
    from pushforward.train.options import VALIDATIONS
    from pushforward.train.state import State, start
    from pushforward.train.trainer import Trainer

    config = load_config(files=[f"recipe:{name}"])
    if config.data.source not in SHAPES:
        return None
    rows, features = SHAPES[config.data.source]
    resolved = resolve(config.model_dump(), rows=rows, features=features, is_toy=False)
    rows = min(rows, arguments.rows or rows)
    # As in a fit, but validated only at start and end: validations are timed separately.
    options = replace(resolved.train, log_every=arguments.steps, validate_every=10**9)
    core = build_model(resolved.flow, features, seed=resolved.seed).to(device)
    points = _mixture(rows + MAX_VALIDATION_ROWS, features).to(device)
    train, validation = RowTensors(points[:rows]), RowTensors(points[rows:])
    initialize_base(core, train.x[:20_000], None)
    state = start(core, options, seed=resolved.seed)
    objective = Likelihood(train, validation, options.batch_size, seed=resolved.seed)
    times = Times()
    ends: list[float] = []
    began = time.perf_counter()

    class Rounds(Callback):
        """Notes when each round of steps ended, and ends the fit after enough of them."""

        def on_log(self, state: State, metrics: dict[str, float]) -> None:
            # The metrics have been read, so a GPU has finished the steps.
            ends.append(time.perf_counter())

        def should_stop(self, state: State) -> str:
            counted = len(ends) - arguments.warmup
            late = bool(ends) and time.perf_counter() - began > arguments.seconds_each
            return "measured" if counted >= arguments.repeats or (late and counted >= 3) else ""

        def on_warning(self, text: str) -> None:
            print(text)

    Trainer(options, callbacks=[Rounds()]).run(state, objective)
    times.warmup_seconds = ends[arguments.warmup - 1] - began if arguments.warmup else 0.0
    kept = ends[max(0, arguments.warmup - 1) :]
    times.seconds = [(after - before) / arguments.steps for before, after in itertools.pairwise(kept)]
    evaluated = copy.deepcopy(state.flow).eval()
    objective.validate(evaluated)
    before = time.perf_counter()
    objective.validate(evaluated)
    validation_seconds = time.perf_counter() - before
    low, high = times.quartiles
    hours = None
    if steps := resolved.train.steps:
        validations = steps / (resolved.train.validate_every or max(1, steps // VALIDATIONS))
        hours = (steps * times.median + validations * validation_seconds) / 3600
    return {
        "recipe": name,
        "parameters": sum(p.numel() for p in core.parameters()),
        "rows": rows,
        "features": features,
        "batch_size": options.batch_size,
        "warmup_seconds": times.warmup_seconds,
        "step_seconds": times.median,
        "step_seconds_quartiles": [low, high],
        "rounds": len(times.seconds),
        "steps_a_round": arguments.steps,
        "points_per_second": options.batch_size / times.median,
        "validation_seconds": validation_seconds,
        "steps": resolved.train.steps,
        "hours": hours,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def _mixture(rows: int, features: int) -> torch.Tensor:
    """Standardised samples ``(rows, features)`` of a fixed mixture of eight Gaussians."""
    generator = torch.Generator().manual_seed(0)
    centres = 2.0 * torch.randn(8, features, generator=generator)
    x = torch.randn(rows, features, generator=generator)
    x += centres[torch.randint(0, 8, (rows,), generator=generator)]
    return x.sub_(x.mean(0)).div_(x.std(0))


def _line(record: dict[str, Any]) -> list[str]:
    low, high = record["step_seconds_quartiles"]
    return [
        record["recipe"],
        f"{record['parameters']:,}",
        f"{record['rows']:,}",
        str(record["features"]),
        str(record["batch_size"]),
        f"{record['warmup_seconds']:.1f}",
        measure.milliseconds(record["step_seconds"]),
        f"{measure.milliseconds(low)}-{measure.milliseconds(high)}",
        f"{record['points_per_second']:,.0f}",
        measure.milliseconds(record["validation_seconds"]),
        "-" if record["steps"] is None else f"{record['steps']:,}",
        "-" if record["hours"] is None else f"{record['hours']:.1f}",
    ]


if __name__ == "__main__":
    main()
