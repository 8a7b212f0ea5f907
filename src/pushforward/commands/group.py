"""A group of commands that suggests the nearest name for a mistyped one."""

import click

from pushforward.common.text import did_you_mean

COMMAND = "pushforward.command"
"""Key of ``Context.meta`` with the full name of the running command, such as ``pushforward wandb sync``."""


class CommandGroup(click.Group):
    """A group of commands; the main command, and every command with subcommands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"no command '{args[0]}'; {hint}".rstrip("; "))
        name, command, rest = super().resolve_command(ctx, args)
        ctx.meta[COMMAND] = f"{ctx.command_path} {name}"
        return name, command, rest
