"""`edgeawq rollback`: back to an earlier release."""

from __future__ import annotations

import json

import click

from edgeawq.cli.device_options import (
    PushDisplay,
    break_lock_option,
    inventory_option,
    json_option,
    timeout_option,
)


@click.command(name="rollback")
@click.argument("name")
@click.argument("release", default="")
@timeout_option
@break_lock_option
@inventory_option
@json_option
def command(
    name: str, release: str, health_timeout_s: float, break_lock: bool, inventory: str | None, as_json: bool
) -> None:
    """Let a device run an earlier release: RELEASE, or the one that ran before.

    The release is checked on the device first; if it does not answer, everything stays as it is.

    \b
    Example:
      edgeawq rollback pi4
      edgeawq rollback pi4 3d27de
    """
    from edgeawq.cli.console import get_console, get_error_console
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.releases import roll_back
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    device = load_inventory(inventory).get(name)
    with (
        connect(device, ask=ask_at_terminal) as transport,
        PushDisplay(get_error_console(), quiet=as_json) as display,
        record_operation("rollback", name, on_note=display.note) as audit,
    ):
        report = roll_back(
            transport,
            device,
            release,
            health_timeout_s=health_timeout_s,
            break_lock=break_lock,
            on_stage=display.stage,
        )
        audit["release"] = report.release
    if as_json:
        click.echo(json.dumps(report.to_json()))
        return
    get_console().print(
        f"{name} runs release {report.release} again (before: {report.previous or 'nothing'}); "
        f"health check good in {report.health_s:.1f} s",
        highlight=False,
    )
