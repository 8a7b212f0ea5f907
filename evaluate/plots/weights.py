"""Importance weights drawn: how far they are from the constant that a perfect fit would make of them."""

from pathlib import Path

import numpy as np

from pushforward.evaluate.importance import Array, log_z_estimate
from pushforward.evaluate.plots.canvas import FLOW, HELD_OUT, MUTED, canvas

_BINS = 80


def log_weights(log_w: Array, log_z: float | None, path: str | Path) -> None:
    """Draw the histogram of log-weights, and the share of the total weight that the heaviest points carry.

    Args:
        log_w: Log-weights ``(n,)`` of points of a flow.
        log_z: The known constant of the target: under a perfect fit all log-weights are equal to it.
        path: Where the picture goes.
    """
    finite = log_w[np.isfinite(log_w)]
    estimate, _ = log_z_estimate(log_w)
    with canvas(path, 9.0, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        low, high = np.quantile(finite, [0.002, 1.0])
        margin = 0.05 * (high - low) or 0.5
        left.hist(finite, bins=np.linspace(low - margin, high + margin, _BINS), color=FLOW, alpha=0.8)
        left.axvline(estimate, color=FLOW, lw=1.2, label=f"estimate of log Z, {estimate:.3f}")
        if log_z is not None:
            left.axvline(log_z, color=HELD_OUT, lw=1.2, ls="--", label=f"known log Z, {log_z:.3f}")
        left.set(xlabel="log-weight of a point of the flow, nats", ylabel="points")
        left.set_ylim(top=1.25 * left.get_ylim()[1])
        left.legend(loc="upper left")
        shares = np.sort(np.exp(finite - finite.max()))[::-1]
        carried = np.cumsum(shares) / shares.sum()
        points = np.arange(1, len(shares) + 1) / len(log_w)
        right.plot(100 * points, 100 * carried, color=FLOW)
        right.plot([0, 100], [0, 100], color=MUTED, lw=0.8)
        right.text(60, 52, "equal weights", color=MUTED, fontsize=8)
        right.set(xlabel="heaviest points, %", ylabel="share of the total weight, %", xlim=(0, 100), ylim=(0, 101))
