"""Which keys a resumed fit may change: its budget, its pace and what is beside it; not what is fitted."""

from pushforward.common.errors import ConfigError
from pushforward.config.schema import Config
from pushforward.experiment.data_source import has_file
from pushforward.runs.folder import RunFolder
from pushforward.train.state import TrainingProgress

MAY_CHANGE = (
    "device",
    "track",
    "wandb",
    "train.steps",
    "train.seconds",
    "train.batch_size",
    "train.learning_rate",
    "train.warmup",
    "train.gradient_clip",
    "train.patience",
    "train.validate_every",
    "train.compile",
    "train.precision",
    "train.checkpoint_seconds",
    "train.log_every",
    "train.evaluate",
)
"""Keys, and groups of keys. All others decide the model, the rows, the loss or the random numbers; the weight decay and
the average of the weights are in the state of the checkpoint."""


def check_resumed_keys(run: RunFolder, before: Config, config: Config) -> None:
    """Check that a resumed fit keeps what it fits; the file of its data may be elsewhere now.

    Args:
        run: The run folder.
        before: Its configuration.
        config: The configuration that is asked for now.

    Raises:
        ConfigError: If another key differs; the message has the key and both values.
    """
    old, new = before.flat(), config.flat()
    for key, value in new.items():
        if value == old[key] or key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE:
            continue
        if key == "data.source" and has_file(run):
            continue  # the content of the file is compared later
        raise ConfigError(
            f"{key}: a resumed fit keeps {_text(old[key])}; got {_text(value)}; start a new fit to change it"
        )


def check_resumed_budget(before: Config, config: Config, progress: TrainingProgress) -> None:
    """Check that a new budget is not less than what the fit has done.

    Raises:
        ConfigError: If it is; the message has both.
    """
    for key, done in (("steps", progress.step), ("seconds", progress.seconds)):
        budget = getattr(config.train, key)
        if budget != getattr(before.train, key) and isinstance(budget, int | float) and budget < done:
            raise ConfigError(f"train.{key}: expected at least the {done:.6g} {key} that are done; got {budget:g}")


def _text(value: object) -> str:
    if value is None or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
