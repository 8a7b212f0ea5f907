"""The ``pushforward`` command.

Every command is imported when it is called, and imports its libraries when it runs, so that ``--help`` does not import
torch. A user's mistake ends with one line and an exit code: 1 failed, 2 usage or configuration, 3 bad data, 4 diverged,
129, 130 and 143 for signals.
"""

import atexit
import gc
import importlib
from typing import Any

import click

from pushforward.commands.common import print_message
from pushforward.commands.group import COMMAND, CommandGroup
from pushforward.common.errors import MAKE_ROOM, TableError, UserError, is_disk_full
from pushforward.common.plugins import name_plugins
from pushforward.common.signals import exit_on_signal
from pushforward.common.streams import STDOUT, prepare_streams
from pushforward.common.version import __version__

# Module in pushforward.commands, and the description in the list of commands.
_COMMANDS = {
    "fit": ("fit", "Fit a density to data."),
    "sample": ("sample", "Draw synthetic rows."),
    "score": ("score", "Compute the log-density of each row of a table."),
    "evaluate": ("runs", "Evaluate a fitted density: test NLL beside baselines, samples, latents, inversion errors."),
    "report": ("pages", "Write an HTML report about a run."),
    "compare": ("pages", "Compare runs on the same test rows."),
    "runs": ("runs", "List runs."),
    "benchmark": ("benchmark", "Compare methods on many data sets with published results."),
    "sweep": ("sweep", "Search for the best hyperparameters."),
    "gradients": ("gradients", "Measure gradient estimators while a flow is fitted to a target density."),
    "wandb": ("wandb", "Upload runs to Weights & Biases; create a dashboard there."),
    "datasets": ("datasets", "List and download data sets."),
    "recipes": ("recipes", "List configurations from the literature."),
}


class _Commands(CommandGroup):
    """A group that imports a command when it is called, and turns errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"pushforward.commands.{_COMMANDS[cmd_name][0]}"), cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        prepare_streams()
        return super().main(*args, **extra)

    def make_context(self, info_name: str | None, args: list[str], **extra: Any) -> click.Context:  # type: ignore[override]
        try:  # --help and --version print here
            return super().make_context(info_name, args, **extra)
        except OSError as error:
            raise _exit_after(error, info_name or "pushforward") from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with exit_on_signal():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            print_message("interrupted")
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise _exit_after(error, ctx.meta.get(COMMAND) or "pushforward") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pushforward")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="MODULE",
    help="Module, or file of Python, that registers flows, maps, objectives or problems of yours.",
)
def main(debug: bool, plugins: tuple[str, ...]) -> None:
    """Fit, score, sample and evaluate densities with normalizing flows."""
    name_plugins(plugins)
    # Imports create a million objects that stay. Garbage collections during imports and at exit take over a second.
    if gc.get_threshold()[0] < 100_000:
        gc.set_threshold(100_000, 20, 20)
        atexit.register(gc.freeze)


def _exit_after(error: Exception, command: str) -> click.exceptions.Exit:
    """Print the line about an error of a command, and return the exit with its code."""
    if isinstance(error, BrokenPipeError) and error.filename == STDOUT:
        return click.exceptions.Exit(0)  # the reader has enough, as in `| head`
    print_message(f"{command}: {_error_message(error)}")
    return click.exceptions.Exit(error.exit_code if isinstance(error, UserError) else 1)


def _error_message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}" + (f"; {MAKE_ROOM}" if is_disk_full(error) else "")
    if isinstance(error, TableError):
        return str(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text} (pushforward --debug shows where)"
