"""Matplotlib figures without side effects: no pyplot, no windows, no changed settings outside the block."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOW_COLOR = "#0072B2"
HELD_OUT_COLOR = "#D55E00"
MUTED_COLOR = "#6F6F6F"
ACCENT_COLORS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""The colour palette of Okabe and Ito, which colour-blind readers can distinguish."""

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
}


@contextlib.contextmanager
def canvas(path: str | Path, width: float, height: float, *, dpi: int = 130) -> Iterator["Figure"]:
    """Open a figure, and save it when the block ends without an error.

    Args:
        path: File to write; its suffix decides the format. Missing folders are created.
        width: Width in inches.
        height: Height in inches.
        dpi: Dots per inch.

    Yields:
        A figure with constrained layout, so that labels do not overlap.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
