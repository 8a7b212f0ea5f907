"""The one way from a problem to a fitted density: options, trainer, selection."""

from collections.abc import Sequence

from pushforward.train.callbacks import Callback
from pushforward.train.device import choose_device
from pushforward.train.problems.base import Fitted, Problem
from pushforward.train.state import State
from pushforward.train.trainer import Trainer


def fit(problem: Problem, callbacks: Sequence[Callback] = (), state: State | None = None) -> Fitted:
    """Fit a density.

    Torch's random state and its number of threads are as before afterwards.

    Args:
        problem: What to fit, from ``train.problems.registry.plan``.
        callbacks: Called around the steps, see ``train.callbacks``.
        state: A state to go on from, such as that of a checkpoint; by default a new one.

    Raises:
        DivergedError: If the loss does not stay finite.
        ConfigError: If the device does not exist, or keys do not go together.
    """
    device = choose_device(problem.options.device)
    if state is None:
        state = problem.start(device, callbacks)
    with problem.threads():
        Trainer(problem.options.train, callbacks=callbacks).run(state, problem.objective(state))
    return problem.finish(state)
