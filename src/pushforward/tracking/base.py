"""The contract of a tracker, which records a fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Tracker:
    """Records metrics, images, tables and models of a fit; what a subclass leaves out is not recorded."""

    def log(self, metrics: Mapping[str, float], step: int, *, seconds: float, kind: str = "train") -> None:
        """Record numbers at a step and a time of fitting; ``kind`` is their source, such as ``validation``."""

    def image(self, key: str, path: Path, caption: str = "", step: int = 0) -> None:
        """Record an image file, which stays where it is."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Record a table."""

    def reference_lines(self, values: Mapping[str, float], last_step: int, seconds: float = 0.0) -> None:
        """Record constants, which are drawn as lines from the first step to the last one at ``seconds``."""

    def model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Record a model, which stays in its folder."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""

    def alert(self, title: str, text: str) -> None:
        """Notify the owner of the run."""

    def finish(self, exit_code: int = 0) -> None:
        """End the record; later calls record nothing."""
