"""`edgeawq profile`: what was measured on a device."""

from __future__ import annotations

import click

from edgeawq.cli.profile_report import compare, show


@click.group(name="profile")
def command() -> None:
    """Show and compare what was measured on devices.

    \b
    Example:
      edgeawq profile show pi5.json
      edgeawq profile compare before.json after.json
    """


command.add_command(show)
command.add_command(compare)
