"""A progress bar on a terminal or in a notebook, and messages above it."""

import importlib.util
import os
import sys
from typing import IO, Any


def is_terminal(stream: IO[str]) -> bool:
    """Return whether a bar can be drawn on a stream."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def is_notebook() -> bool:
    """Return whether this is a notebook that can show a bar, which needs ipywidgets."""
    if "IPython" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


def can_show_bar(stream: IO[str]) -> bool:
    """Return whether a bar can be shown, on a terminal or in a notebook."""
    return is_terminal(stream) or is_notebook()


def open_bar(stream: IO[str], *, total: float | None) -> tuple[Any, Any]:
    """Start a bar, which disappears when it is stopped.

    Args:
        stream: A terminal, or a stream of a notebook.
        total: Final value of ``completed``; None while unknown.

    Returns:
        The started ``rich.progress.Progress``, and its only task.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    # The caller has checked the stream, so rich must not guess from FORCE_COLOR; rich respects NO_COLOR by itself.
    if is_terminal(stream):
        console = Console(file=stream, force_terminal=True, force_jupyter=False)
    else:
        console = Console(force_jupyter=True)
    bar = Progress(
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        refresh_per_second=5,
        transient=True,
        redirect_stdout=False,  # stdout belongs to the caller
    )
    task = bar.add_task("starting", total=total)
    bar.start()
    return bar, task
