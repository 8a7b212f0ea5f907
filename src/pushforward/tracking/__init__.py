"""Show and record a fit: progress on the terminal, metrics.jsonl, Weights & Biases, trackers of plugins."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.tracking.base import Tracker as Tracker
    from pushforward.tracking.registry import register_tracker as register_tracker

__getattr__, __dir__ = lazy("pushforward.tracking", {"base": "Tracker", "registry": "register_tracker"})
