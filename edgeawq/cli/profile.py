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


@click.group(name="profile", cls=MeasureByDefault)
def command() -> None:
    """Measure a device and the model on it; show and compare what was measured.

    `edgeawq profile TARGET` is short for `edgeawq profile measure TARGET`.

    \b
    Example:
      edgeawq profile pi5 --json pi5.json
      edgeawq profile --bundle smollm2.edgeawq --quick
      edgeawq profile show pi5.json
      edgeawq profile compare before.json after.json
    """


command.add_command(measure)
command.add_command(show)
command.add_command(compare)
