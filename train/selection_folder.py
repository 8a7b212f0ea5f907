"""What model selection keeps in a folder, so that it goes on where a signal or a kill ended it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pushforward.common.errors import RunError, reason
from pushforward.common.files import write_text
from pushforward.train.callbacks import Callback
from pushforward.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pushforward.train.state import State


@dataclass(frozen=True)
class SelectionFolder:
    """A checkpoint of each candidate, and what was decided before they were compared.

    An error in writing is a warning: an interrupted selection then goes on from an earlier state.

    Args:
        path: The folder, which is made when it is needed; None keeps nothing.
        warn: Called with a line about what could not be written.
    """

    path: Path | None
    warn: Callable[[str], object]

    def decided(self) -> dict[str, Any]:
        """What was decided; empty if that is not kept."""
        try:
            found: dict[str, Any] = {} if self.path is None else json.loads(self._decided.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def decide(self, **facts: Any) -> None:
        """Keep what was decided."""
        self._write(self._decided, lambda: write_text(self._decided, json.dumps(facts)))

    def restored(self, candidate: int, make: Callable[[], State]) -> State:
        """The state of a candidate in its last checkpoint; a new one without a checkpoint of this model.

        Args:
            candidate: Its number.
            make: Makes a new state.
        """
        if self.path is not None and self._checkpoint(candidate).exists():
            try:
                return load_checkpoint(make(), self._checkpoint(candidate))
            except CheckpointError as error:  # of other keys of the resumed fit, or damaged
                self.warn(f"{error}; the candidate starts over")
        return make()

    def keep(self, candidate: int, state: State) -> None:
        """Write the checkpoint of a candidate."""
        self._write(self._checkpoint(candidate), lambda: save_checkpoint(state, self._checkpoint(candidate)))

    @property
    def _decided(self) -> Path:
        return Path(self.path or "") / "decided.json"

    def _checkpoint(self, candidate: int) -> Path:
        return Path(self.path or "") / f"candidate-{candidate}.pt"

    def _write(self, path: Path, write: Callable[[], object]) -> None:
        if self.path is None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write()
        except (OSError, RunError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            self.warn(f"{path}: cannot write: {why}")


class KeepCandidate(Callback):
    """Keeps a candidate in training, and ends it if a callback of the fit asks to stop; these see nothing else of it.

    Args:
        callbacks: The callbacks of the fit.
        keep: Called with the state when it may be saved.
    """

    def __init__(self, callbacks: Callback, keep: Callable[[State], object]) -> None:
        self.callbacks, self.keep = callbacks, keep

    def on_checkpoint(self, state: State) -> None:
        self.keep(state)

    def should_stop(self, state: State) -> str:
        return self.callbacks.should_stop(state)
