"""`edgeawq status`: what runs on the devices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgeawq.cli.device_options import format_bytes, inventory_option, json_option

if TYPE_CHECKING:
    from edgeawq.deploy.inventory import Device
    from edgeawq.deploy.releases import DeviceStatus
    from edgeawq.errors import EdgeawqError


@click.command(name="status")
@click.argument("names", nargs=-1, metavar="[NAME…]")
@inventory_option
@json_option
@click.pass_context
def command(context: click.Context, names: tuple[str, ...], inventory: str | None, as_json: bool) -> None:
    """Show what runs on the devices: all of the inventory, or those named.

    Devices that `edgeawq profile` or a push has measured are shown with their speed, against their own past or what
    their profile promises; one that runs well below is marked.

    The exit code is 0 when all have answered, else that of the first failure.

    \b
    Example:
      edgeawq status
      edgeawq status pi4 --json
    """
    from edgeawq.deploy.inventory import load_inventory

    known = load_inventory(inventory)
    devices = [known.get(name) for name in names] or known.all_devices()
    results = [(device, _ask(device)) for device in devices]
    failures = [result for _, result in results if isinstance(result, Exception)]
    if as_json:
        click.echo(json.dumps([_to_json(device, result) for device, result in results]))
    else:
        _print(results)
    if failures:
        context.exit(getattr(failures[0], "exit_code", 1))


def _ask(device: Device) -> DeviceStatus | EdgeawqError:
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.releases import read_status
    from edgeawq.deploy.ssh_prompt import ask_at_terminal
    from edgeawq.errors import EdgeawqError

    try:
        with connect(device, ask=ask_at_terminal) as transport:
            return read_status(transport, device)
    except EdgeawqError as error:
        return error


def _to_json(device: Device, result: DeviceStatus | EdgeawqError) -> dict[str, Any]:
    from edgeawq.cli.status_speed import describe_health, find_health

    if isinstance(result, Exception):
        return {"device": device.name, "error": {"type": type(result).__name__, "what": result.what}}
    return {**result.to_json(), "speed": describe_health(find_health(device))}


def _print(results: list[tuple[Device, DeviceStatus | EdgeawqError]]) -> None:
    from rich.table import Table

    from edgeawq.cli.console import get_console, print_error
    from edgeawq.cli.status_speed import find_health, print_speeds

    table = Table(box=None, pad_edge=False)
    for title in ("device", "release", "model", "health", "signed by", "previous", "free"):
        table.add_column(title, overflow="fold", no_wrap=title in ("release", "previous"))
    for device, result in results:
        if isinstance(result, Exception):
            table.add_row(device.name, "-", "[red]no answer[/red]", "-", "-", "-", "-")
            continue
        current = result.find(result.current) or {}
        health = str(current.get("health", "-")) if result.current else "-"
        if current.get("bad_starts"):
            health += f", started {current['bad_starts']} times without an answer"
        if result.lock:
            health += f" (locked by {result.lock['owner']})"
        table.add_row(
            device.name,
            result.current or "nothing pushed",
            f"{current['name']} for {current['profile']}" if "name" in current else "-",
            health,
            _describe_trust(current, result.trust),
            result.previous or "-",
            format_bytes(result.free_bytes),
        )
    console = get_console()
    console.print(table)
    answered = [device for device, result in results if not isinstance(result, Exception)]
    speeds = [(device.name, find_health(device)) for device in answered]
    print_speeds(console, [(name, health) for name, health in speeds if health is not None])
    for _, result in results:
        if isinstance(result, Exception):
            print_error(result)


def _describe_trust(release: dict[str, Any], trust: dict[str, Any]) -> str:
    """Who has signed what runs, and whether the device asks for that."""
    recorded = release.get("trust")
    signer = str(recorded.get("key_name") or recorded.get("key") or "-") if isinstance(recorded, dict) else "-"
    if trust.get("error"):
        return f"[red]{trust['error']}[/red]"
    return signer if trust.get("pinned") else f"{signer} (no key pinned)" if signer != "-" else "no key pinned"
