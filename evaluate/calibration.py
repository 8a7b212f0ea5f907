"""Calibration of a density: histograms of the probability integral transform (PIT), quantiles of each column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import Array

PIT_BINS = 20
"""Maximum number of bins of a PIT histogram; fewer where a bin would expect less than ten rows."""

LEVELS = (0.001, 0.005, 0.01, 0.025, *(round(0.05 * i, 2) for i in range(1, 20)), 0.975, 0.99, 0.995, 0.999)
"""Levels of the compared quantiles: evenly spaced in the middle, denser in the tails."""


@dataclass(frozen=True)
class Calibration:
    """The data of the calibration plots.

    Attributes:
        rows: Number of held-out rows.
        columns: Names of the columns.
        pit_edges: Bin edges of the PIT histograms ``(B + 1,)``, from 0 to 1.
        pit_counts: Number of held-out rows in each bin ``(D, B)``. The PIT value of a row is the cumulative
            distribution function of N(0, 1) at its latent, feature by feature; it is uniform under a perfect fit. In
            an autoregressive flow this tests each feature given those before it.
        levels: Levels of the quantiles ``(L,)``; levels that the rows cannot resolve are left out.
        held_out: Quantiles of each column of the held-out rows ``(D, L)``, in data units.
        samples: Quantiles of each column of the samples ``(D, L)``.
    """

    rows: int
    columns: list[str]
    pit_edges: list[float]
    pit_counts: list[list[int]]
    levels: list[float]
    held_out: list[list[float]]
    samples: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dicts, safe for JSON."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "pit": {"edges": self.pit_edges, "counts": self.pit_counts},
            "quantiles": json_safe({"levels": self.levels, "held_out": self.held_out, "samples": self.samples}),
        }


def calibrate(latents: Array, held_out: Array, samples: Array, columns: Sequence[str]) -> Calibration:
    """Compute PIT histograms and quantiles.

    Args:
        latents: Latents of the held-out rows ``(n, D)``; rows that are not finite are left out.
        held_out: The held-out rows ``(n, D)``, in data units.
        samples: Samples of the flow ``(m, D)``, in data units.
        columns: Names of the columns.

    Raises:
        ValueError: If a table has another number of columns, or no finite row.
    """
    from scipy import special

    tables = {"latents": latents, "held_out": held_out, "samples": samples}
    for name, table in tables.items():
        if table.ndim != 2 or table.shape[1] != len(columns) or not np.isfinite(table).all(axis=1).any():
            raise ValueError(f"calibrate: expected finite {name} of shape (rows, {len(columns)}); got {table.shape}")
    finite = {name: table[np.isfinite(table).all(axis=1)] for name, table in tables.items()}
    bins = int(np.clip(len(finite["latents"]) // 10, 4, PIT_BINS))
    edges = np.linspace(0.0, 1.0, bins + 1)
    uniform = special.ndtr(finite["latents"])
    rows = min(len(finite["held_out"]), len(finite["samples"]))
    levels = [level for level in LEVELS if min(level, 1.0 - level) * rows >= 1.0] or [0.5]
    return Calibration(
        rows=len(held_out),
        columns=list(columns),
        pit_edges=edges.tolist(),
        pit_counts=[np.histogram(column, edges)[0].tolist() for column in uniform.T],
        levels=levels,
        held_out=np.quantile(finite["held_out"], levels, axis=0).T.tolist(),
        samples=np.quantile(finite["samples"], levels, axis=0).T.tolist(),
    )
