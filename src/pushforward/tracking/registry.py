"""The trackers, by name: the values of the key ``track``."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pushforward.common.errors import ConfigError
from pushforward.common.registry import Registry
from pushforward.common.text import unknown_name

if TYPE_CHECKING:
    from pushforward.tracking.base import Tracker

Maker = TypeVar("Maker", bound=Callable[..., Any])

WANDB = "wandb"
"""The name of Weights & Biases, which the key ``wandb.mode`` turns on and off."""

TRACKERS: "Registry[Callable[..., Tracker]]" = Registry(
    "tracker", {WANDB: "pushforward.tracking.wandb.tracker:WandbTracker"}
)
"""What makes a tracker: a class or a function that is called with ``(folder, config, name=..., tags=...)``, see
:func:`register_tracker`."""


def register_tracker(name: str) -> Callable[[Maker], Maker]:
    """Return a decorator that adds a tracker under a name, a value of the key ``track``.

    It decorates a subclass of ``Tracker``, or a function that returns one. Both are called with

    - ``folder``, the path of the run folder, which exists,
    - ``config``, the resolved configuration as a mapping of dotted keys to texts and numbers, with further facts,
    - ``name``, the name of the run, as a keyword,
    - ``tags``, the flow and the data set, as a keyword.

    A resumed fit makes it anew with the same folder. An error in it does not end the fit: it is shown in one line,
    ``finish(1)`` is called, and nothing after.

    Args:
        name: The name.
    """
    return TRACKERS.register(name)


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist.

    Raises:
        ConfigError: If a name is not registered; the message has the nearest that is.
    """
    known = TRACKERS.names()
    for name in names:
        if name not in known:
            raise ConfigError(f"track: {unknown_name('tracker', name, known)}; one of a plugin needs --plugin MODULE")
