"""`edgeawq profile`: measure devices, and show and compare what was measured."""

from __future__ import annotations

import click

from edgeawq.cli.profile_measure import measure
from edgeawq.cli.profile_report import compare, show


class MeasureByDefault(click.Group):
    """`edgeawq profile X` measures X, unless X is the name of a sub-command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["measure", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both ways of calling it: with what to measure, and with a sub-command."""
        formatter.write_usage(ctx.command_path, "[TARGET] [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of measuring, which is what most people want to know, and then the commands."""
        measuring = click.Context(self.commands["measure"], info_name="measure", parent=ctx)
        click.Command.format_options(self.commands["measure"], measuring, formatter)
        self.format_commands(ctx, formatter)


@click.group(name="profile", cls=MeasureByDefault)
def command() -> None:
    """Measure a device and the model on it; show and compare what was measured.

    TARGET is the name of a device that something was pushed to, or a bundle's folder to measure on this machine.
    Without one, this machine and the embedded model are measured; that takes one to two minutes here, after some
    minutes to quantize the model the first time, and longer on a small device (--quick: a third). Ctrl-C ends it early
    and keeps what is there.

    \b
    Example:
      edgeawq profile --quick
      edgeawq profile pi5 --json pi5.json
      edgeawq profile --bundle smollm2.edgeawq --quick
      edgeawq profile show pi5.json
      edgeawq profile compare before.json after.json
    """


command.add_command(measure)
command.add_command(show)
command.add_command(compare)
