"""`edgeawq log`: what was done from this computer, or on a device."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from edgeawq.cli.device_options import inventory_option, json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="log")
@click.argument("device", default="", metavar="[DEVICE]")
@click.option("-n", "--lines", "count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@inventory_option
@json_option
def command(device: str, count: int, inventory: str | None, as_json: bool) -> None:
    """Show what this computer has done to its devices, or, with DEVICE, what the device itself has noted.

    \b
    Example:
      edgeawq log -n 50
      edgeawq log pi4 --json
    """
    from edgeawq.cli.console import get_console

    entries = _read_device(device, inventory, count) if device else _read_host(count)
    if as_json:
        click.echo(json.dumps(entries))
        return
    if not entries:
        get_console().print("nothing has been noted yet")
        return
    if device:
        get_console().print(_tabulate_device(entries))
    else:
        _print_host(get_console(), entries)


def _read_host(count: int) -> list[dict[str, Any]]:
    from edgeawq.deploy.audit import read_entries

    return read_entries(count)


def _read_device(name: str, inventory: str | None, count: int) -> list[dict[str, Any]]:
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.device_trust import read_device_log
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    device = load_inventory(inventory).get(name)
    with connect(device, ask=ask_at_terminal) as transport:
        return read_device_log(transport, device, count)


def _print_host(console: Console, entries: list[dict[str, Any]]) -> None:
    """A line for each operation; why it failed below it, in the whole width."""
    from rich.text import Text

    from edgeawq.cli.console import wrap_words

    rows: list[tuple[str, ...]] = [("time", "operation", "device", "release", "outcome", "by")]
    for entry in entries:
        fields = (entry.get(name) for name in ("op", "device", "release", "outcome", "user"))
        rows.append((_when(entry.get("time")), *map(_text, fields)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, entry in zip(rows, [{}, *entries], strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(Text(line, style="" if entry else "bold"))
        if "what" in entry:
            reason = wrap_words(f"    {_text(entry['what'])}", console.width, "    ")
            console.print(Text(reason, style="red"))


def _tabulate_device(entries: list[dict[str, Any]]) -> Any:
    table = _make_table("time there", "event", "details", "by")
    for entry in entries:
        known = ("time", "event", "by", "token")
        details = ", ".join(f"{_text(name)} {_text(value)}" for name, value in entry.items() if name not in known)
        _add_row(table, _when(entry.get("time")), _text(entry.get("event")), details or "-", _text(entry.get("by")))
    return table


def _make_table(*titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in ("time", "time there", "release"))
    return table


def _add_row(table: Any, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))  # not as markup


def _text(value: Any) -> str:
    """Return a value on one line; what comes from a device may hold control characters."""
    shown = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return "".join(character if character.isprintable() else " " for character in shown) or "-"


def _when(value: Any) -> str:
    if not isinstance(value, (int, float)) or not 0 < value < 1e11:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
