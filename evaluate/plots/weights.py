"""Picture of importance weights: they are all equal under a perfect fit."""

from pathlib import Path

import numpy as np

from pushforward.evaluate.importance import log_z_estimate
from pushforward.evaluate.plots.canvas import FLOW_COLOR, HELD_OUT_COLOR, MUTED_COLOR, canvas
from pushforward.evaluate.statistics import Array

_BINS = 80


def log_weights(log_w: Array, log_z: float | None, path: str | Path) -> None:
    """Draw a histogram of log importance weights, and the share of the total weight held by the largest weights.

    Args:
        log_w: Log-weights ``(n,)`` of samples of the flow.
        log_z: log Z of the target, if known: under a perfect fit all log-weights are equal to it.
        path: File to write.
    """
    finite = log_w[np.isfinite(log_w)]
    estimate, _ = log_z_estimate(log_w)
    with canvas(path, 9.0, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        low, high = np.quantile(finite, [0.002, 1.0])
        margin = 0.05 * (high - low) or 0.5
        left.hist(finite, bins=np.linspace(low - margin, high + margin, _BINS), color=FLOW_COLOR, alpha=0.8)
        left.axvline(estimate, color=FLOW_COLOR, lw=1.2, label=f"estimate of log Z, {estimate:.3f}")
        if log_z is not None:
            left.axvline(log_z, color=HELD_OUT_COLOR, lw=1.2, ls="--", label=f"known log Z, {log_z:.3f}")
        left.set(xlabel="log importance weight (nats)", ylabel="samples of the flow")
        left.set_ylim(top=1.25 * left.get_ylim()[1])
        left.legend(loc="upper left")
        shares = np.sort(np.exp(finite - finite.max()))[::-1]
        cumulative = np.cumsum(shares) / shares.sum()
        fraction = np.arange(1, len(shares) + 1) / len(log_w)
        right.plot(100 * fraction, 100 * cumulative, color=FLOW_COLOR)
        right.plot([0, 100], [0, 100], color=MUTED_COLOR, lw=0.8)
        right.text(60, 52, "equal weights", color=MUTED_COLOR, fontsize=8)
        right.set(xlabel="largest weights (%)", ylabel="share of the total weight (%)", xlim=(0, 100), ylim=(0, 101))
