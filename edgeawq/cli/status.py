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
    from rich.text import Text

    from edgeawq.cli.console import get_console, print_error
    from edgeawq.cli.status_speed import find_health, print_speeds

    table = Table(box=None, pad_edge=False)
    table.add_column("device", overflow="fold")
    for title in ("release", "health", "model", "free"):
        table.add_column(title, overflow="fold", no_wrap=title in ("release", "free"))
    remarks: list[str] = []
    running: dict[str, str] = {}
    for device, result in results:
        if isinstance(result, Exception):
            table.add_row(device.name, Text("no answer", style="red"))
            continue
        current = result.find(result.current) or {}
        running[device.name] = str(current.get("name", ""))
        health = str(current.get("health", "-")) if result.current else "-"
        cells = (device.name, result.current or "nothing pushed", health, describe_model(current, device))
        table.add_row(*map(Text, (*cells, format_bytes(result.free_bytes))))
        trust = _describe_trust(current, result.trust)
        if result.current or trust:
            before = ("  before", result.previous) if result.previous else ("", "")
            table.add_row(*map(Text, (*before, "", trust)), style="dim")
        remarks += [f"{device.name}: {remark}" for remark in _list_remarks(current, result)]
    console = get_console()
    console.print(table)
    for remark in remarks:
        console.print(Text(remark, style="yellow"))
    answered = [device for device, result in results if not isinstance(result, Exception)]
    speeds = [(device.name, find_health(device)) for device in answered]
    print_speeds(console, [(name, health) for name, health in speeds if health is not None], running)
    for _, result in results:
        if isinstance(result, Exception):
            print_error(result)


def describe_model(release: dict[str, Any], device: Device) -> str:
    """The model of a release, with the profile that it is packed for where the device's name does not say it."""
    if "name" not in release:
        return "-"
    profile = release.get("profile")
    return f"{release['name']}" if profile in (device.name, "host") else f"{release['name']} for {profile}"


def _list_remarks(release: dict[str, Any], status: DeviceStatus) -> list[str]:
    """What somebody should know beside what runs."""
    remarks = []
    if release.get("bad_starts"):
        remarks.append(f"started {release['bad_starts']} times without an answer")
    if status.lock:
        from edgeawq.deploy.receiver_errors import describe_age

        dead = "" if status.lock.get("alive") else ", which is gone: the next push takes the lock over"
        remarks.append(f"locked by {status.lock['owner']} for {describe_age(float(status.lock['age_s']))}{dead}")
    if status.trust.get("error"):
        remarks.append(str(status.trust["error"]))
    return remarks


def _describe_trust(release: dict[str, Any], trust: dict[str, Any]) -> str:
    """Who has signed what runs, and whether the device asks for that."""
    recorded = release.get("trust")
    signer = str(recorded.get("key_name") or recorded.get("key") or "") if isinstance(recorded, dict) else ""
    pinned = "" if trust.get("pinned") else "no key pinned"
    if not release:
        return "" if pinned else "takes signed releases only"
    return "; ".join(part for part in (f"signed by {signer}" if signer else "not signed", pinned) if part)
