"""Regression: p(y given x) by a conditional flow, a Bayesian network, and a network with one noise level, 20 splits.

    python benchmarks/regression.py FOLDER --out benchmarks/results/regression.json

FOLDER has tables without a header, NAME.csv or NAME.csv.gz, the response last (concrete, energy, yacht, housing,
airfoil, parkinsons of the UCI repository). Every split holds out a random tenth for testing and a tenth of the rest for
early stopping; it is the same for all methods. Budgets are in steps, so that the results do not depend on the load.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pushforward.config.read import make_config
from pushforward.evaluate.regression import regression_report
from pushforward.train import Trainer, fitting
from pushforward.train.problems.registry import plan
from pushforward.train.problems.rows import RowsProblem

STEPS = {"flow": 1_000, "bayesian-network": 4_000, "homoscedastic": 4_000}
# Test NLL of NGBoost, 20 splits: Duan et al. (2020), https://arxiv.org/abs/1910.03225, table 1.
NGBOOST = {"concrete": 3.04, "energy": 0.60, "yacht": 0.20, "housing": 2.43}


class Homoscedastic(nn.Module):
    """A network for the mean, and one standard deviation for all rows."""

    def __init__(self, inputs: int, hidden: int = 50) -> None:
        super().__init__()
        widths = [inputs, hidden, hidden]
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.mean = nn.Sequential(*layers, nn.Linear(hidden, 1))
        self.log_sd = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        z = (x - self.mean(context)) * (-self.log_sd).exp()
        return (-0.5 * z.square() - self.log_sd - 0.5 * math.log(2 * math.pi)).squeeze(-1)


def fit(path: str, method: str, seed: int, steps: int) -> dict[str, Any]:
    """Fit one method to one split, and return its numbers on the test rows."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    width = np.loadtxt(path, delimiter=",", max_rows=1).size
    keys = {"response": f"x{width}", "steps": steps, "seed": seed, "test_fraction": 0.1, "validation_fraction": 0.1}
    config = make_config(path, keys | {"flow": method if method == "bayesian-network" else "auto"})
    problem = plan(config.model_dump())
    assert isinstance(problem, RowsProblem)
    test = problem.prepared.test
    if method == "homoscedastic":
        device, prepared = torch.device("cpu"), problem.prepared
        train, validation = prepared.training_rows(device), prepared.validation_rows(device)
        torch.manual_seed(seed)
        model = Homoscedastic(train.context.shape[1])  # type: ignore[union-attr]
        trainer = Trainer(steps=steps, batch_size=min(100, len(train)), learning_rate=1e-2, weight_decay=1e-3)
        trainer.fit(model, train.noised(), validation.x, given=train.context, given_validation=validation.context)
        x = prepared.standardize(torch.from_numpy(test.rows))[0].float()
        given = prepared.scale_context(torch.from_numpy(test.context))[0].float()  # type: ignore[misc]
        with torch.no_grad():
            log_probs = model.log_prob(x, given).double().numpy() + prepared.standardize.log_det
        return {"nll": float(-log_probs.mean()), "seconds": time.perf_counter() - began}
    fitted = fitting.fit(problem)
    scores = problem.score(fitted.density)
    report = regression_report(fitted.density.flow, test.rows, test.context, ["y"], draws=200)  # type: ignore[arg-type]
    (found,) = report.responses
    return {
        "nll": scores.numbers["test_nll"],
        "crps": found.crps,
        "rmse": found.rmse,
        "cde_loss": report.cde_loss,
        **{f"within_{i.level:g}": i.coverage for i in found.intervals},
        "steps": fitted.state.progress.step,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tables", nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    files = {path.name.partition(".")[0]: path for path in sorted(arguments.folder.glob("*.csv*"))}
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for name in arguments.tables or files:
            jobs = {
                method: [pool.submit(fit, str(files[name]), method, seed, steps) for seed in range(arguments.splits)]
                for method, steps in STEPS.items()
            }
            results[name] = {method: [job.result() for job in each] for method, each in jobs.items()}
            row = [f"{name:<11}"]
            for method, each in results[name].items():
                nll = [one["nll"] for one in each]
                se = statistics.stdev(nll) / math.sqrt(len(nll)) if len(nll) > 1 else math.nan
                row.append(f"{method} {statistics.mean(nll):7.3f} ± {se:.3f}")
            apart = [
                a["nll"] - b["nll"] for a, b in zip(results[name]["homoscedastic"], results[name]["flow"], strict=True)
            ]
            row.append(
                f"flow better in {sum(gap > 0 for gap in apart)} of {len(apart)}, by {statistics.mean(apart):.3f}"
            )
            row.append(f"NGBoost {NGBOOST.get(name, math.nan):.2f}")
            print("  ".join(row), flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps({"steps": STEPS, "tables": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
