"""`edgeawq gc`: remove releases a device no longer needs."""

from __future__ import annotations

import json

import click

from edgeawq.cli.device_options import break_lock_option, format_bytes, inventory_option, json_option


@click.command(name="gc")
@click.argument("name")
@click.option(
    "--keep",
    type=click.IntRange(2, 1000),
    default=2,
    show_default=True,
    help="How many releases stay, the newest ones.",
)
@break_lock_option
@inventory_option
@json_option
def command(name: str, keep: int, break_lock: bool, inventory: str | None, as_json: bool) -> None:
    """Remove old releases from a device, and what an interrupted push has left.

    The current release, the previous one, and any that is running at this moment always stay.

    \b
    Example:
      edgeawq gc pi4 --keep 2
    """
    from edgeawq.cli.console import get_console, get_error_console
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.releases import collect_garbage
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    device = load_inventory(inventory).get(name)
    with (
        connect(device, ask=ask_at_terminal) as transport,
        record_operation("gc", name, on_note=get_error_console().print) as audit,
    ):
        removed, freed = collect_garbage(transport, device, keep, break_lock=break_lock)
        audit["removed"] = removed
    if as_json:
        click.echo(json.dumps({"removed": removed, "freed": freed}))
        return
    names = ", ".join(removed) if removed else "no release"
    get_console().print(f"{name}: removed {names}; {format_bytes(freed)} are free again", highlight=False)
