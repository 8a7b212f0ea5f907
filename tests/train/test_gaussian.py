"""The Gaussian that a fit keeps: not worse than the Gaussian baseline, also where columns are collinear."""

import numpy as np
import pytest
import torch

from pushforward.evaluate.baselines import fit_baselines
from pushforward.evaluate.likelihood import nll
from pushforward.train.gaussian import gaussian_flow


@pytest.mark.parametrize("kind", ["shares", "copy", "none"])
def test_it_is_not_worse_than_the_baseline(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet([2, 3, 4], 600) if kind == "shares" else rng.standard_normal((600, 3))
    if kind == "copy":
        rows[:, 2] = rows[:, 0]
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    train, validation, test = np.split(rows, [400, 500])
    baseline = fit_baselines(train, validation, test, seed=0, seconds=1.0)[0]
    kept = gaussian_flow(torch.from_numpy(train).float()).double()
    assert nll(kept, torch.from_numpy(test)).nll == pytest.approx(baseline.nll.nll, abs=0.02)
