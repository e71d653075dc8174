"""`edgeawq key`: the keys that sign releases, and which of them a device trusts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, TypeVar

import click

from edgeawq.cli.device_options import inventory_option, json_option

if TYPE_CHECKING:
    from edgeawq.deploy.device_trust import DeviceTrust
    from edgeawq.deploy.inventory import Device
    from edgeawq.deploy.keys import PublicKey
    from edgeawq.deploy.transport import Transport

T = TypeVar("T")


@click.group(name="key")
def command() -> None:
    """Make keys, and tell devices to accept only releases that are signed with them.

    \b
    Example:
      edgeawq key init
      edgeawq key trust pi4
    """


@command.command("init")
@click.argument("name", default="default")
@click.option("--no-passphrase", is_flag=True, help="Do not ask for a passphrase; the key has none.")
@json_option
def init(name: str, no_passphrase: bool, as_json: bool) -> None:
    """Make a key pair called NAME [default], for signing releases.

    The passphrase is asked for at the terminal (none is fine), or taken from $EDGEAWQ_KEY_PASSPHRASE.

    \b
    Example:
      edgeawq key init
      edgeawq key init work --no-passphrase
    """
    import os

    from edgeawq.cli.console import get_error_console
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.keys import PASSPHRASE_VARIABLE, check_key_name, create_key, find_key_folder

    check_key_name(name)
    passphrase = "" if no_passphrase else os.environ.get(PASSPHRASE_VARIABLE) or _ask_new_passphrase()
    with record_operation("key init", key_name=name, on_note=_note) as facts:
        key = create_key(name, passphrase=passphrase)
        facts["key"] = key.identity
    if as_json:
        click.echo(json.dumps({**key.to_json(), "has_private": True}))
        return
    click.echo(key.line)
    say = get_error_console().print
    say(f"the key is in {find_key_folder()}: keep a copy of {name}.key in a safe place", markup=False, highlight=False)
    say("next: edgeawq key trust DEVICE", markup=False, highlight=False)


@command.command("list")
@json_option
def list_all(as_json: bool) -> None:
    """List your keys, and the public keys of other people.

    \b
    Example:
      edgeawq key list
    """
    from rich.table import Table

    from edgeawq.cli.console import get_console
    from edgeawq.deploy.keys import find_key_folder, list_keys

    keys = list_keys()
    if as_json:
        click.echo(json.dumps([{**key.to_json(), "has_private": key.has_private} for key in keys]))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "id", "can sign"):
        table.add_column(title, overflow="fold", no_wrap=title == "id")
    for key in keys:
        table.add_row(key.name, key.identity, "yes" if key.has_private else "no")
    get_console().print(table if keys else f"there are no keys in {find_key_folder()}: edgeawq key init")


@command.command("show")
@click.argument("name", default="default")
def show(name: str) -> None:
    """Print the public key NAME [default] as one line, to give to other people.

    \b
    Example:
      edgeawq key show work > work.pub
    """
    from edgeawq.deploy.keys import find_key

    click.echo(find_key(name).line)


@command.command("import-public")
@click.argument("file", type=click.File("rb"))
@click.option("--name", default="", help="What to call it here, instead of the name in the file.")
def import_public(file: IO[bytes], name: str) -> None:
    """Put somebody else's public key into the store, so that `key trust` and `key rotate` can name it.

    Ask its owner on another channel whether the id that is shown is right.

    \b
    Example:
      edgeawq key import-public alice.pub
    """
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.keys import MAX_KEY_FILE_BYTES, import_public_key

    text = file.read(MAX_KEY_FILE_BYTES).decode("utf-8", "replace")
    with record_operation("key import", on_note=_note) as facts:
        key = import_public_key(text, name=name)
        facts.update(key_name=key.name, key=key.identity)
    click.echo(f"{key.name} {key.identity}")


@command.command("trust")
@click.argument("device")
@click.option("--key", "names", multiple=True, metavar="NAME", help="A key to trust [default]; may be given again.")
@inventory_option
@json_option
def trust(device: str, names: tuple[str, ...], inventory: str | None, as_json: bool) -> None:
    """Make DEVICE accept nothing but releases that are signed with one of the keys named.

    This can be done once for a device; `edgeawq key rotate` changes the keys later.

    \b
    Example:
      edgeawq key trust pi4
      edgeawq key trust pi4 --key default --key alice
    """
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.device_trust import pin_keys
    from edgeawq.deploy.inventory import load_inventory

    keys = _find_keys(names or ("default",))
    target = load_inventory(inventory).get(device)

    with record_operation("key trust", device, keys=[key.identity for key in keys], on_note=_note):
        result = _with_device(target, lambda transport: pin_keys(transport, target, keys))
    _report(result, device, as_json)


@command.command("rotate")
@click.argument("device")
@click.option("--to", "names", multiple=True, required=True, metavar="NAME", help="A key to trust from now on.")
@click.option("--sign-with", default="", metavar="NAME", help="The key that the device trusts now, if not found.")
@click.option("--reset-counter", is_flag=True, help="Also set back the release counter, after a stolen key's misuse.")
@click.option("--yes", is_flag=True, help="Do not ask when none of the new keys can sign here.")
@inventory_option
@json_option
def rotate(
    device: str,
    names: tuple[str, ...],
    sign_with: str,
    reset_counter: bool,
    yes: bool,
    inventory: str | None,
    as_json: bool,
) -> None:
    """Replace the keys that DEVICE trusts by those named with --to, which may be given again.

    The change is signed with one of the keys that the device trusts now.

    \b
    Example:
      edgeawq key rotate pi4 --to default --to alice
      edgeawq key rotate pi4 --to new --sign-with old
    """
    from edgeawq.deploy.audit import record_operation
    from edgeawq.deploy.device_trust import rotate_keys
    from edgeawq.deploy.inventory import load_inventory
    from edgeawq.deploy.ssh_prompt import ask_at_terminal

    keys = _find_keys(names)
    target = load_inventory(inventory).get(device)
    if not yes and not any(key.has_private for key in keys):
        click.confirm(
            f"None of {', '.join(names)} can sign here: you will not be able to push to {device} any more. Go on?",
            abort=True,
            err=True,
        )
    with record_operation("key rotate", device, keys=[key.identity for key in keys], on_note=_note):
        result = _with_device(
            target,
            lambda transport: rotate_keys(
                transport, target, keys, ask=ask_at_terminal, sign_with=sign_with, reset_counter=reset_counter
            ),
        )
    _report(result, device, as_json)


def _with_device(device: Device, work: Callable[[Transport], T]) -> T:
    from edgeawq.deploy.connect import connect
    from edgeawq.deploy.ssh_prompt import RememberedAnswers

    with connect(device, ask=RememberedAnswers()) as transport:
        return work(transport)


def _find_keys(names: tuple[str, ...]) -> list[PublicKey]:
    from edgeawq.deploy.keys import find_key

    return [find_key(name) for name in dict.fromkeys(names)]


def _report(trust: DeviceTrust, device: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"device": device, **trust.to_json()}))
    else:
        click.echo(f"{device} accepts releases signed with {trust.names}, and no others")


def _ask_new_passphrase() -> str:
    from edgeawq.deploy.ssh_prompt import ask_at_terminal
    from edgeawq.errors import UsageError

    first = ask_at_terminal("Passphrase for the new key (empty: none): ")
    if first and ask_at_terminal("The same again: ") != first:
        raise UsageError("the two passphrases differ", remedy="try again")
    return first or ""


def _note(text: str) -> None:
    from edgeawq.cli.console import get_error_console

    get_error_console().print(f"note: {text}", highlight=False, markup=False)
