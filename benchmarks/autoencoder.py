"""Do flows improve a variational autoencoder? Grey-level digits, four models that differ in prior and posterior.

    python benchmarks/autoencoder.py [--quick] [--seeds 3] [--steps 2400] [--decoder logistic] [--out]

The 1,797 digits of 8 x 8 pixels with values 0 to 16 that scikit-learn ships (UCI, Optical Recognition of Handwritten
Digits) are shuffled with ``RandomState(42)``: 270 rows validation, 360 test, the others training. The likelihood is of
the integers themselves: no noise is added, and nats are those of a discrete distribution. All models have the same
encoder, decoder, latent features, steps and options; they differ in whether prior and posterior are Gaussian or flows.
The options were chosen by the validation bound of the plain model, among 8, 16, 24, 32 and 48 latent features, dropout
of 0 to 0.3, learning rates of 0.001 to 0.008, two weight decays, and 1200 or 2400 steps; those of the flows were hardly
tuned. Every fit keeps the weights with the best validation bound, and the test rows are scored once, at the end, by the
importance-weighted bound.

Differences are paired, with the same rows and the same seed for both fits. Their standard error adds the variance of
the mean over rows (of the mean over seeds) and the variance of the mean over seeds.
"""

import math
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import measure
import numpy as np
import torch
from measure import Target
from sklearn.datasets import load_digits

from pushforward.flows import Standardize
from pushforward.flows.vae.autoencoder import Autoencoder, build_autoencoder
from pushforward.train.objectives.bound import BoundObjective
from pushforward.train.options import TrainOptions
from pushforward.train.state import start
from pushforward.train.trainer import Trainer

VALUES, LATENT = 17, 32
PRIOR = {"prior": "realnvp", "prior_options": {"layers": 6, "hidden": 64, "blocks": 1}}
POSTERIOR = {"posterior": "nsf-c", "posterior_options": {"layers": 2, "hidden": 64, "blocks": 1}}
MODELS: dict[str, dict[str, Any]] = {
    "Gaussian prior, Gaussian posterior": {},
    "Gaussian prior, flow posterior": POSTERIOR,
    "flow prior, Gaussian posterior": PRIOR,
    "flow prior, flow posterior": PRIOR | POSTERIOR,
}
PLAIN = next(iter(MODELS))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="fits of each model (default 3)")
    parser.add_argument("--steps", type=int, default=2400, help="steps of each fit (default 2400)")
    parser.add_argument("--samples", type=int, default=1000, help="latent samples per test row (default 1000)")
    parser.add_argument("--processes", type=int, default=1, help="fits in parallel (default 1)")
    parser.add_argument("--decoder", default="logistic", choices=("logistic", "categorical"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.samples = 1, min(arguments.steps, 300), 100
    facts = measure.machine(arguments.threads, ["scikit-learn"])
    measure.print_header(facts)
    train, validation, test = digits()
    print(f"{len(train)} training, {len(validation)} validation, {len(test)} test rows; {arguments.decoder} decoder\n")

    jobs = [
        (name, seed, arguments.steps, arguments.samples, arguments.decoder, facts["threads"])
        for seed in range(arguments.seeds)
        for name in MODELS
    ]
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        records = list(pool.map(fitted, *zip(*jobs, strict=True)))
    summary = summarize(records)
    floor = independent(train, test)
    report(summary, floor, arguments.samples)
    targets = []
    if not arguments.quick:
        best = max(row["difference"] / row["difference_se"] for row in summary if row["model"] != PLAIN)
        targets.append(Target("best gain of a flow over the plain model, in standard errors", best, 2.0, at_most=False))
    measure.print_targets(targets)
    results = {
        "summary": summary,
        "independent_pixels": floor,
        "fits": [{key: value for key, value in r.items() if key != "test_bounds"} for r in records],
        "samples": arguments.samples,
    }
    measure.write_json(arguments.out, "autoencoder", facts, results, targets)


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training, validation and test rows, ``(n, 64)`` with integers 0 to 16."""
    rows = load_digits().data
    rows = torch.from_numpy(rows[np.random.RandomState(42).permutation(len(rows))]).float()
    return rows[630:], rows[:270], rows[270:630]


def build(name: str, seed: int, decoder: str, train: torch.Tensor) -> Autoencoder:
    torch.manual_seed(seed)
    # Pixels at the edge hardly vary: a scale of at least one grey level keeps their noise small.
    standardize = Standardize(train.mean(0).tolist(), train.std(0).clamp_min(1.0).tolist())
    features = train.shape[1]
    return build_autoencoder(
        decoder, features, latent=LATENT, values=VALUES, dropout=0.2, standardize=standardize, **MODELS[name]
    )


def fitted(name: str, seed: int, steps: int, samples: int, decoder: str, threads: int) -> dict[str, Any]:
    """Fit one model; return its results with the bounds of all test rows."""
    torch.set_num_threads(threads)
    train, validation, test = digits()
    model = build(name, seed, decoder, train)
    settings = TrainOptions(steps=steps, batch_size=128, learning_rate=4e-3, weight_decay=1e-3, ema_decay=0.995)
    bound = BoundObjective(train, validation, settings.batch_size, validation_samples=16, seed=seed)
    fit = Trainer(settings).run(start(model, settings, seed=seed), bound).progress
    began = time.perf_counter()
    torch.manual_seed(seed)
    with torch.no_grad():
        bounds = model.log_prob_bound(test, samples).double()
        elbo = model.elbo(test, 20).double()
    print(f"seed {seed}, {name}: {bounds.mean():.3f} nats, {fit.seconds:.0f} s", flush=True)
    return {
        "model": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": fit.seconds,
        "score_seconds": time.perf_counter() - began,
        "best_step": fit.best_step,
        "validation_bound": -fit.best_loss,
        "test_elbo": float(elbo.mean()),
        "test_bound": float(bounds.mean()),
        "test_bounds": [round(value, 4) for value in bounds.tolist()],
    }


def summarize(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and rows, and paired differences to the plain model."""
    plain = bounds_of(records, PLAIN)
    rows = []
    for name in MODELS:
        own, bounds = [r for r in records if r["model"] == name], bounds_of(records, name)
        gain = bounds - plain
        rows.append(
            {
                "model": name,
                "parameters": own[0]["parameters"],
                "seconds": statistics.median(r["seconds"] for r in own),
                "validation_bound": statistics.fmean(r["validation_bound"] for r in own),
                "test_elbo": statistics.fmean(r["test_elbo"] for r in own),
                "test_bound": float(bounds.mean()),
                "test_bound_se": se(bounds.mean(0)),
                "difference": float(gain.mean()),
                "difference_se": math.hypot(se(gain.mean(0)), se(gain.mean(1))),
                "difference_se_rows": se(gain.mean(0)),
                "difference_of_seeds": gain.mean(1).tolist(),
            }
        )
    return rows


def bounds_of(records: list[dict[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Bounds ``(seeds, rows)`` of a model."""
    return np.array([r["test_bounds"] for r in records if r["model"] == name])


def se(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Standard error of a mean; 0 for a single value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def independent(train: torch.Tensor, test: torch.Tensor) -> float:
    """Test log-likelihood of independent pixels, from their training frequencies with half a count added to each."""
    counts = torch.nn.functional.one_hot(train.long(), VALUES).sum(0).double() + 0.5
    frequencies = (counts / counts.sum(-1, keepdim=True)).log()
    return float(frequencies.gather(1, test.long().T).sum(0).mean())


def report(summary: list[dict[str, Any]], floor: float, samples: int) -> None:
    cells = []
    for row in summary:
        plain = row["model"] == PLAIN
        cells.append(
            [
                row["model"],
                f"{row['parameters']:,}",
                f"{row['seconds']:.0f}",
                f"{row['validation_bound']:.2f}",
                f"{row['test_elbo']:.2f}",
                f"{row['test_bound']:.2f} ± {row['test_bound_se']:.2f}",
                "" if plain else f"{row['difference']:+.2f} ± {row['difference_se']:.2f}",
                "" if plain else " ".join(f"{value:+.2f}" for value in row["difference_of_seeds"]),
            ]
        )
    cells.append(["independent pixels", "1,024", "", "", "", f"{floor:.2f}", "", ""])
    columns = ["model", "parameters", "seconds", "validation", "test ELBO", f"test bound, {samples} samples"]
    measure.table([*columns, "to the plain one", "of each seed"], cells, title="nats a row, higher is better")


if __name__ == "__main__":
    main()
