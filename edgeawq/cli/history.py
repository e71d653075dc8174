"""`edgeawq history`: the releases a device has had."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from edgeawq.cli.device_options import format_bytes, inventory_option, json_option


@click.command(name="history")
@click.argument("name")
@inventory_option
@json_option
def command(name: str, inventory: str | None, as_json: bool) -> None:
    """List the releases on a device, the newest first, and when it was switched.

    \b
    Example:
      edgeawq history pi4
    """
    from rich.table import Table
    from rich.text import Text

    from edgeawq.cli.console import get_console
    from edgeawq.cli.status import describe_model
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.releases import read_status
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    device = load_inventory(inventory).get(name)
    with connect(device, ask=ask_at_terminal) as transport:
        status = read_status(transport, device)
    if as_json:
        keys = ("current", "previous", "releases", "history")
        click.echo(json.dumps({key: value for key, value in status.to_json().items() if key in keys}))
        return
    releases = Table(box=None, pad_edge=False)
    for title in ("release", "", "size", "health", "checked", "model"):
        releases.add_column(title, overflow="fold", no_wrap=title != "model")
    reasons: list[str] = []
    for entry in status.releases:
        mark = {status.current: "current", status.previous: "previous"}.get(entry["id"], "")
        health = "damaged" if "damaged" in entry else str(entry.get("health", "-"))
        reason = entry.get("damaged") or entry.get("reason")
        if reason:
            reasons.append(f"{entry['id']}: {reason}")
        size = format_bytes(entry["bytes"]) if "bytes" in entry else "-"
        cells = (entry["id"], mark, size, health, _when(entry.get("time")), describe_model(entry, device))
        releases.add_row(*map(Text, cells))
    get_console().print(releases if status.releases else f"nothing has been pushed to {name} yet")
    for reason in reasons:
        get_console().print(Text(reason, style="red"))
    if status.history:
        switches = Table(box=None, pad_edge=False)
        for title in ("switched", "from", "to", "by"):
            switches.add_column(title, overflow="fold", no_wrap=title in ("from", "to"))
        for event in reversed(status.history[-20:]):
            names = (str(event.get("from") or "-"), str(event.get("to")), str(event.get("by")))
            switches.add_row(*map(Text, (_when(event.get("time")), *names)))
        get_console().print()
        get_console().print(switches)


def _when(value: Any) -> str:
    """Return the device's own time of an event: its clock may be wrong."""
    if not isinstance(value, (int, float)) or not 0 < value < 1e11:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
