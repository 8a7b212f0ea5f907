"""The bar that progress is shown as on a terminal."""

import os
from typing import IO, Any


def is_terminal(stream: IO[str]) -> bool:
    """Whether a bar can be drawn there."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def open_bar(stream: IO[str], *, total: float | None) -> tuple[Any, Any]:
    """Draw a bar that disappears when it is stopped.

    Args:
        stream: A terminal.
        total: What ``completed`` will be at the end; None while unknown.

    Returns:
        The ``rich.progress.Progress``, started, and its one task.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    # The stream decides, not rich's guess from FORCE_COLOR and the like; NO_COLOR is rich's own to respect.
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
