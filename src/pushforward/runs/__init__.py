"""Run folders: create, open, list, read and compare them, from their files alone."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.runs.folder import RunFolder as RunFolder
    from pushforward.runs.listing import list_runs as list_runs

__getattr__, __dir__ = lazy(
    "pushforward.runs",
    {"folder": "RunFolder", "listing": "list_runs"},
)
