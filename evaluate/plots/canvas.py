"""Figures that leave no trace: no pyplot, no open windows, no settings changed outside the block."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOW = "#0072B2"
HELD_OUT = "#D55E00"
MUTED = "#6F6F6F"
ACCENTS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""The colours of Okabe and Ito, which colour-blind readers tell apart."""

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
    """Open a figure to draw on, and write it when the block ends without an error.

    Args:
        path: Where the picture goes; its suffix decides the format. Folders are made.
        width: Width in inches.
        height: Height in inches.
        dpi: Dots an inch.

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
