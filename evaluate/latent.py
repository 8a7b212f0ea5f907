"""Tests of the latents of held-out rows: under a perfect fit they are independent standard normal variables."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import Array


@dataclass(frozen=True)
class LatentReport:
    """How close the latents of held-out rows are to N(0, I).

    Attributes:
        rows: Number of rows tested.
        non_finite: Number of rows left out because a value was NaN or infinite.
        mean: Mean of each feature.
        std: Standard deviation of each feature.
        ks: Kolmogorov-Smirnov distance of each feature from N(0, 1).
        ks_p_value: p-value of each feature, not corrected for the number of features.
        max_correlation: Largest absolute correlation between two features; 0 for a single feature.
        radius_ks: Kolmogorov-Smirnov distance of the squared radius from chi-squared with D degrees of freedom.
        radius_ks_p_value: p-value of that distance.
    """

    rows: int
    non_finite: int
    mean: list[float]
    std: list[float]
    ks: list[float]
    ks_p_value: list[float]
    max_correlation: float
    radius_ks: float
    radius_ks_p_value: float

    def to_dict(self) -> dict[str, Any]:
        """The fields, safe for JSON."""
        return dict(json_safe(self))

    def lines(self) -> list[str]:
        """The report as lines of plain text."""
        worst = int(np.argmax(self.ks))
        # Bonferroni correction: this is the largest of many distances.
        p_value = min(1.0, self.ks_p_value[worst] * len(self.ks))
        mean, std = (np.asarray(values) for values in (self.mean, self.std))
        out = [
            f"features             mean within {np.abs(mean).max():.3f} of 0,"
            f" std {std.min():.3f} to {std.max():.3f}, correlation at most {self.max_correlation:.3f}",
            f"largest KS distance  {self.ks[worst]:.4f} from N(0, 1) in feature {worst}"
            f" (p = {p_value:.2g}, corrected for {len(self.ks)} features)",
            f"squared radius       KS distance {self.radius_ks:.4f} from chi-squared({len(self.ks)})"
            f" (p = {self.radius_ks_p_value:.2g})",
        ]
        if self.non_finite:
            out.append(f"not finite           {self.non_finite:,} rows, left out of the above")
        return out


def latent_normality(latents: Tensor | Array) -> LatentReport:
    """Test latents against independent standard normal variables.

    With thousands of rows, p-values are small for deviations too small to matter; the distances give their size.

    Args:
        latents: Latents of held-out rows ``(n, D)``.

    Raises:
        ValueError: For another shape, or fewer than two finite rows.
    """
    from scipy import stats

    z = latents.detach().cpu().double().numpy() if isinstance(latents, Tensor) else np.asarray(latents, np.float64)
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"latent_normality: expected latents of shape (rows, features); got {z.shape}")
    finite = np.isfinite(z).all(axis=1)
    z, non_finite = z[finite], int(np.count_nonzero(~finite))
    rows, features = z.shape
    if rows < 2:
        raise ValueError(f"latent_normality: expected at least two finite rows; got {rows}")
    tests = [stats.kstest(column, "norm") for column in z.T]
    radius = stats.kstest((z**2).sum(axis=1), stats.chi2(features).cdf)
    largest = 0.0
    if features > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant feature has no correlation
            correlation = np.nan_to_num(np.corrcoef(z, rowvar=False))
        largest = float(np.abs(correlation - np.diag(np.diag(correlation))).max())
    return LatentReport(
        rows=rows,
        non_finite=non_finite,
        mean=z.mean(axis=0).tolist(),
        std=z.std(axis=0, ddof=1).tolist(),
        ks=[float(test.statistic) for test in tests],
        ks_p_value=[float(test.pvalue) for test in tests],
        max_correlation=largest,
        radius_ks=float(radius.statistic),
        radius_ks_p_value=float(radius.pvalue),
    )
