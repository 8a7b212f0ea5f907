"""Held-out rows pulled back to noise: under a perfect fit they are independent standard normals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pushforward.common.files import json_safe
from pushforward.evaluate.likelihood import Array


@dataclass(frozen=True)
class LatentReport:
    """How normal the noise is that a flow makes of held-out rows.

    Attributes:
        rows: Rows tested.
        non_finite: Rows left out because a value was NaN or infinite.
        mean: Mean of each feature.
        std: Standard deviation of each feature.
        ks: Kolmogorov-Smirnov distance of each feature from N(0, 1).
        ks_p_value: Its p-value, one a feature, not corrected for their number.
        max_correlation: Largest absolute correlation between two features; 0 for a single one.
        radius_ks: Kolmogorov-Smirnov distance of the squared radius from chi-squared with D degrees of freedom.
        radius_ks_p_value: Its p-value.
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
        """A few lines of plain text."""
        worst = int(np.argmax(self.ks))
        # Bonferroni: of many features one is always the worst.
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


def latent_normality(eps: Tensor | Array) -> LatentReport:
    """Test noise ``(n, D)`` against independent standard normals.

    With thousands of rows the p-values notice deviations that no one would mind; the distances say how large they
    are.

    Args:
        eps: What the flow and its base make of held-out rows, ``(n, D)``.

    Raises:
        ValueError: For another shape, or fewer than two finite rows.
    """
    from scipy import stats

    points = eps.detach().cpu().double().numpy() if isinstance(eps, Tensor) else np.asarray(eps, np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"latent_normality: expected noise of shape (rows, features); got {points.shape}")
    finite = np.isfinite(points).all(axis=1)
    points, non_finite = points[finite], int(np.count_nonzero(~finite))
    rows, features = points.shape
    if rows < 2:
        raise ValueError(f"latent_normality: expected at least two finite rows; got {rows}")
    tests = [stats.kstest(column, "norm") for column in points.T]
    radius = stats.kstest((points**2).sum(axis=1), stats.chi2(features).cdf)
    largest = 0.0
    if features > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant feature correlates with nothing
            correlation = np.nan_to_num(np.corrcoef(points, rowvar=False))
        largest = float(np.abs(correlation - np.diag(np.diag(correlation))).max())
    return LatentReport(
        rows=rows,
        non_finite=non_finite,
        mean=points.mean(axis=0).tolist(),
        std=points.std(axis=0, ddof=1).tolist(),
        ks=[float(test.statistic) for test in tests],
        ks_p_value=[float(test.pvalue) for test in tests],
        max_correlation=largest,
        radius_ks=float(radius.statistic),
        radius_ks_p_value=float(radius.pvalue),
    )
