"""Callbacks: what happens around the steps of a fit."""

from collections.abc import Callable, Iterable
from typing import Any

from pushforward.common.errors import ConfigError
from pushforward.train.objectives.base import Metrics
from pushforward.train.options import TrainOptions
from pushforward.train.state import State


class Callback:
    """Something that watches a fit, or ends it. Every method does nothing unless it is overridden.

    ``state.progress`` has the step and the seconds of each call. Metrics are in the units of the data.
    """

    def on_start(self, state: State, options: TrainOptions) -> None:
        """Training begins, or goes on from a checkpoint."""

    def on_log(self, state: State, metrics: Metrics) -> None:
        """A row of metrics of training steps, every ``log_every`` steps."""

    def on_validation(self, state: State, metrics: Metrics) -> None:
        """The metrics of a validation; ``state.best`` may have changed."""

    def on_checkpoint(self, state: State) -> None:
        """The state may be saved now: about every ``checkpoint_seconds``, at the start and at the end."""

    def should_stop(self, state: State) -> str:
        """Return a reason to stop, or an empty string; asked before every step."""
        return ""

    def on_message(self, text: str) -> None:
        """One line about a choice of the fit, such as the selected model."""

    def on_warning(self, text: str) -> None:
        """One line about something that does not work as asked and is done in another way."""

    def on_end(self, state: State) -> None:
        """Training has ended; the model has its best weights."""


class Callbacks(Callback):
    """Several callbacks as one; the first reason to stop counts.

    Raises:
        ConfigError: If these are not callbacks.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        expected = "callbacks: expected a list of Callback objects, see pushforward.train.Callback"
        if not isinstance(callbacks, Iterable):
            raise ConfigError(f"{expected}; got {_kind(callbacks)}")
        self.each = list(callbacks)
        for callback in self.each:
            if not isinstance(callback, Callback):
                raise ConfigError(f"{expected}; got {_kind(callback)}")

    def on_start(self, state: State, options: TrainOptions) -> None:
        for callback in self.each:
            callback.on_start(state, options)

    def on_log(self, state: State, metrics: Metrics) -> None:
        for callback in self.each:
            callback.on_log(state, metrics)

    def on_validation(self, state: State, metrics: Metrics) -> None:
        for callback in self.each:
            callback.on_validation(state, metrics)

    def on_checkpoint(self, state: State) -> None:
        for callback in self.each:
            callback.on_checkpoint(state)

    def should_stop(self, state: State) -> str:
        for callback in self.each:
            reason: Any = callback.should_stop(state)
            if reason:
                return reason if isinstance(reason, str) else f"{_kind(callback)} asked to stop"
        return ""

    def on_message(self, text: str) -> None:
        for callback in self.each:
            callback.on_message(text)

    def on_warning(self, text: str) -> None:
        for callback in self.each:
            callback.on_warning(text)

    def on_end(self, state: State) -> None:
        for callback in self.each:
            callback.on_end(state)


class Watch(Callback):
    """Ends a fit by what its validations show.

    Args:
        watch: Called after every validation with the share of the budget spent and the loss; returns a reason to stop,
            or an empty string.
    """

    def __init__(self, watch: Callable[[float, float], str]) -> None:
        self.watch = watch
        self.reason = ""

    def on_start(self, state: State, options: TrainOptions) -> None:
        self.options = options

    def on_validation(self, state: State, metrics: Metrics) -> None:
        share = self.options.share(state.progress.step, state.progress.seconds)
        self.reason = self.watch(share, metrics.get("val/nll", metrics.get("val/loss", float("nan"))))

    def should_stop(self, state: State) -> str:
        return self.reason


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
