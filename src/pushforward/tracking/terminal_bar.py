"""A progress bar on a terminal, and messages above it."""

import os
from typing import IO, Any


def is_terminal(stream: IO[str]) -> bool:
    """Return whether a bar can be drawn on a stream."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def open_bar(stream: IO[str], *, total: float | None) -> tuple[Any, Any]:
    """Start a bar, which disappears when it is stopped.

    Args:
        stream: A terminal.
        total: Final value of ``completed``; None while unknown.

    Returns:
        The started ``rich.progress.Progress``, and its only task.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    # The caller has checked the stream, so rich must not guess from FORCE_COLOR; rich respects NO_COLOR by itself.
    console = Console(file=stream, force_terminal=True, force_jupyter=False)
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
