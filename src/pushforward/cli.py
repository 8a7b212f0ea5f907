"""The ``pushforward`` command: thin, and fast to start.

Every command is imported when it is called, and imports what it needs when it runs, so that ``--help`` costs no torch.
Errors that a user can cause end in one line and the exit code of their kind: 1 failed, 2 usage or configuration, 3 bad
data, 4 diverged, 130 and 143 for signals.
"""

import atexit
import gc
import importlib
import os
import sys
from typing import Any

import click

from pushforward import __version__
from pushforward.commands.common import say
from pushforward.commands.group import COMMAND, CommandGroup
from pushforward.common.errors import UserError

# Module below pushforward.commands, and what the list of commands says.
_COMMANDS = {
    "fit": ("fit", "Fit a density to data."),
    "sample": ("rows", "Draw synthetic rows."),
    "score": ("rows", "Log-densities of the rows of a table."),
    "evaluate": ("runs", "Say what a fitted density is worth."),
    "report": ("pages", "Write a run as one HTML page."),
    "compare": ("pages", "Compare runs on the same test rows."),
    "runs": ("runs", "List the runs there are."),
    "benchmark": ("benchmark", "Compare methods on many data sets, beside published numbers."),
    "sweep": ("sweep", "Search for the best parameters."),
    "gradients": ("gradients", "Measure gradient estimators while a flow learns a target."),
    "wandb": ("wandb", "Upload runs to Weights & Biases; make a dashboard there."),
    "datasets": ("datasets", "List the data sets there are; download them."),
    "recipes": ("recipes", "List configurations of the literature, ready to fit."),
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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # The reader has gone, as in `| head`. Python would complain once more while flushing at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            say(f"{ctx.meta.get(COMMAND, ctx.info_name)}: {_one_line(error)}")
            ctx.exit(error.exit_code if isinstance(error, UserError) else 1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pushforward")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Fit, score, sample and evaluate densities with normalizing flows."""
    # Imports make a million objects that stay: to look through them for those that nobody uses any more, again and
    # again while they come and once more at the end, takes over a second.
    if gc.get_threshold()[0] < 100_000:
        gc.set_threshold(100_000, 20, 20)
        atexit.register(gc.freeze)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text} (pushforward --debug shows where)"
