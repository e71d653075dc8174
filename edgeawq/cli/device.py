"""`edgeawq device`: the inventory of devices."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Literal

import click

from edgeawq.cli.device_options import format_bytes, inventory_option, json_option

if TYPE_CHECKING:
    from edgeawq.deploy.device_facts import DeviceFacts, PythonFact
    from edgeawq.deploy.inventory import Device
    from edgeawq.deploy.ssh import DecideHostKey
    from edgeawq.deploy.transport import Transport


@click.group(name="device")
def command() -> None:
    """Add, list and inspect the devices you push to.

    \b
    Example:
      edgeawq device add pi4 pi@raspberrypi.local
      edgeawq device list
    """


@command.command("add")
@click.argument("name")
@click.argument("address", metavar="USER@HOST[:PORT]")
@click.option("--profile", default="", help="The device profile, instead of the one that is proposed.")
@click.option("--identity", "identity_file", default="", metavar="FILE", help="The private key to log in with.")
@click.option("--root", default="", metavar="FOLDER", help="The folder on the device for releases [~/.edgeawq].")
@click.option("--python", default="", metavar="PATH", help="The Python on the device, if not python3.")
@click.option("--model", default="", help="What `edgeawq push NAME` sends when nothing is named.")
@click.option(
    "--transport",
    type=click.Choice(["ssh", "openssh"]),
    default="ssh",
    show_default=True,
    help="openssh: the system's ssh with your own configuration (host certificates, FIDO keys, GSSAPI).",
)
@click.option("--cipher", default="", metavar="NAMES", help="Ciphers, the best first [what suits the device's CPU].")
@click.option("--limit-rate", default="", metavar="RATE", help="Bytes per second that a push may send: 500k, 10M.")
@click.option(
    "--trust",
    "trusted",
    multiple=True,
    metavar="KEY",
    help="The device shall take only releases signed with this key [`default`, if you have made one].",
)
@click.option("--no-trust", is_flag=True, help="Pin no key on the device.")
@click.option("--known-hosts", default="", metavar="FILE", help="Where its host key is recorded.")
@click.option("--yes-host-key", default="", metavar="SHA256:…", help="Accept exactly this host key without asking.")
@click.option("--yes", is_flag=True, help="Accept whatever host key the device shows, and the proposed profile.")
@click.option("--replace", is_flag=True, help="Replace a device of that name.")
@inventory_option
@json_option
def add(
    name: str,
    address: str,
    profile: str,
    identity_file: str,
    root: str,
    python: str,
    model: str,
    transport: str,
    cipher: str,
    limit_rate: str,
    trusted: tuple[str, ...],
    no_trust: bool,
    known_hosts: str,
    yes_host_key: str,
    yes: bool,
    replace: bool,
    inventory: str | None,
    as_json: bool,
) -> None:
    """Connect to a device, find out what it is, and write it into the inventory.

    A host key that is not on record is shown and asked about. A password is asked for at the terminal, or taken
    from $EDGEAWQ_SSH_PASSWORD; a key is better. If you have made a signing key (`edgeawq key init`), it is pinned on
    the device, which then takes signed releases only.

    \b
    Example:
      edgeawq device add pi4 pi@raspberrypi.local
      edgeawq device add orin nvidia@192.168.1.7:2222 --profile orin-nano
      edgeawq device add lab pi@lab-pi --transport openssh --limit-rate 5M
    """
    from edgeawq.cli.console import get_console, get_error_console
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.device_facts import choose_python, gather_facts, propose_profile
    from edgeawq.deploy.inventory import (
        DEFAULT_ROOT,
        LOCAL_DEVICE,
        Device,
        Inventory,
        check_device,
        check_device_name,
        find_inventory,
        load_inventory,
        write_device,
    )
    from edgeawq.deploy.ssh_ciphers import CHACHA_HINT, has_aes, propose_ciphers
    from edgeawq.deploy.ssh_prompt import ask_at_terminal
    from edgeawq.errors import ProfileError, UsageError

    check_device_name(name)
    if name == LOCAL_DEVICE:
        raise UsageError("`localhost` always is this machine and needs no adding", remedy="edgeawq push localhost")
    path = find_inventory(inventory)
    existing = load_inventory(inventory) if path.exists() else Inventory(path)
    if name in existing.devices and not replace:
        raise UsageError(f"{name!r} is in {path} already", remedy="choose another name, or add --replace")
    user, host, port = _parse_address(address)
    if profile:
        from device_profiles.detect import find_profile

        find_profile(profile)  # an unknown one is an error now, not at the first push
    device = Device(
        name=name,
        host=host,
        user=user,
        port=port,
        model=model,
        identity_file=identity_file,
        known_hosts_file=known_hosts,
        python=python,
        root=root or DEFAULT_ROOT,
        transport=transport,
        cipher=cipher,
        bandwidth_limit=limit_rate,
    )
    check_device(device)
    with connect(device, ask=ask_at_terminal, decide=_make_decision(yes, yes_host_key)) as connection:
        facts = gather_facts(connection, device)
        chosen = choose_python(facts, python)
        signer = "" if no_trust else _pin_keys(connection, device, trusted)
    proposal, note = profile, ""
    if not profile:
        try:
            detection = propose_profile(facts)
            proposal, note = detection.profile or "", detection.note
        except ProfileError as error:
            note = f"{error.what}; {error.remedy}"
    device = dataclasses.replace(
        device, profile=proposal, cipher=cipher or propose_ciphers(facts.cpuinfo, device.transport)
    )
    if has_aes(facts.cpuinfo) is False and device.transport == "ssh":
        note = f"{note}; {CHACHA_HINT}" if note else CHACHA_HINT
    write_device(existing, device)
    if as_json:
        click.echo(json.dumps({**_to_json(device), "inventory": str(path), "facts": facts.to_json(), "note": note}))
        return
    _print_facts(device, facts, chosen, note)
    if signer:
        get_error_console().print(f"{name} takes only releases signed with {signer}", highlight=False, markup=False)
    get_error_console().print(f"{name} is in {path}", highlight=False, markup=False)
    if not proposal:
        get_console().print("no profile was found: set `profile` in the inventory before you push", markup=False)


@command.command("list")
@inventory_option
@json_option
def list_devices(inventory: str | None, as_json: bool) -> None:
    """List all devices; `localhost` is always there.

    \b
    Example:
      edgeawq device list --json
    """
    from rich.table import Table
    from rich.text import Text

    from edgeawq.cli.console import get_console
    from edgeawq.deploy.inventory import load_inventory

    devices = load_inventory(inventory).all_devices()
    if as_json:
        click.echo(json.dumps([_to_json(device) for device in devices]))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "address", "profile", "model"):
        table.add_column(title, overflow="fold")
    for device in devices:
        cells = (device.name, _address(device), device.profile or "-", device.model or "-")
        table.add_row(*map(Text, cells))
    get_console().print(table)


@command.command("show")
@click.argument("name")
@inventory_option
@json_option
def show(name: str, inventory: str | None, as_json: bool) -> None:
    """Connect to a device and show what it is.

    \b
    Example:
      edgeawq device show pi4
    """
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.device_facts import choose_python, gather_facts
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    device = load_inventory(inventory).get(name)
    with connect(device, ask=ask_at_terminal) as transport:
        facts = gather_facts(transport, device)
    if as_json:
        click.echo(json.dumps({**_to_json(device), "facts": facts.to_json()}))
        return
    _print_facts(device, facts, choose_python(facts, device.python), "")


@command.command("remove")
@click.argument("name")
@inventory_option
def remove(name: str, inventory: str | None) -> None:
    """Take a device out of the inventory. Nothing on the device changes.

    \b
    Example:
      edgeawq device remove pi4
    """
    from edgeawq.cli.console import get_error_console
    from edgeawq.deploy.inventory import load_inventory, remove_device

    changed = remove_device(load_inventory(inventory), name)
    get_error_console().print(f"{name} is no longer in {changed.path}", highlight=False, markup=False)


def _pin_keys(connection: Transport, device: Device, names: tuple[str, ...]) -> str:
    """Let the device trust the keys named, or your default key if there is one; return which ones it trusts now."""
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.device_trust import parse_device_trust, pin_keys
    from edgeawq.deploy.keys import find_key, list_keys
    from edgeawq.deploy.releases import read_status

    if not names:
        if not any(key.name == "default" and key.has_private for key in list_keys()):
            return ""
        known = parse_device_trust(read_status(connection, device).trust, connection.address)
        if known.pinned:  # a colleague's keys, perhaps; `edgeawq key rotate` changes them
            return known.names
    keys = [find_key(name) for name in names or ("default",)]
    with record_operation("key trust", device.name, keys=[key.identity for key in keys]):
        return pin_keys(connection, device, keys).names


def _parse_address(address: str) -> tuple[str, str, int | None]:
    from edgeawq.deploy.ssh_config import split_host_port
    from edgeawq.errors import UsageError

    user, _, rest = address.removeprefix("ssh://").rpartition("@")
    host, port = split_host_port(rest)
    if not host or host.startswith("-") or any(character.isspace() for character in host):
        raise UsageError(f"{address!r} is not an address", remedy="write USER@HOST or USER@HOST:PORT")
    return user, host, port


def _make_decision(yes: bool, yes_host_key: str) -> DecideHostKey:
    from edgeawq.deploy.ssh import HostKeyQuestion
    from edgeawq.errors import HostKeyError

    def decide(question: HostKeyQuestion) -> Literal["record", "refuse"]:
        shown = f"{question.key_type} {question.fingerprint}"
        if yes_host_key:
            # A jump host has a key of its own; the one that was given is the device's.
            if question.fingerprint == yes_host_key:
                return "record"
            raise HostKeyError(
                f"{question.endpoint.label} shows the host key {shown}, not {yes_host_key}",
                remedy="do not go on before you know why",
            )
        click.echo(f"The host key of {question.endpoint.label} ({question.endpoint.address}) is\n  {shown}", err=True)
        if yes:
            return "record"
        click.echo("Compare it on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", err=True)
        if not sys.stdin.isatty():
            return "refuse"
        return "record" if click.confirm("Is that right?", default=False, err=True) else "refuse"

    return decide


def _print_facts(device: Device, facts: DeviceFacts, python: PythonFact, note: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeawq.cli.console import get_console

    table = Table(box=None, show_header=False, pad_edge=False)
    profile = (device.profile or "none") + (f" ({note})" if note else "")
    rows = {
        "address": _address(device),
        "model": facts.model or "-",
        "system": f"{facts.os_name or facts.system}, {facts.machine}",
        "cores": str(facts.n_cores),
        "memory": f"{format_bytes(facts.memory_bytes)}, {format_bytes(facts.available_memory_bytes)} available",
        "free space": f"{format_bytes(facts.free_bytes)} at {device.root}",
        "python": f"{python.path} {python.version_text}",
        "profile": profile,
    }
    if device.transport != "ssh":
        rows["transport"] = device.transport
    if device.cipher:
        rows["ciphers"] = device.cipher.replace("@openssh.com", "").replace(",", ", ")
    for title, value in rows.items():
        table.add_row(title, Text(value))
    get_console().print(table)


def _address(device: Device) -> str:
    if device.is_local:
        return "this machine"
    host = f"[{device.host}]" if ":" in device.host else device.host
    return (f"{device.user}@" if device.user else "") + host + (f":{device.port}" if device.port else "")


def _to_json(device: Device) -> dict[str, object]:
    return dataclasses.asdict(device)
