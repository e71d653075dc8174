"""The inventory: which devices there are and how to reach them, in `edgeawq.toml`."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeawq.deploy.rate_limit import parse_rate
from edgeawq.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "edgeawq.toml"
LOCAL_DEVICE = "localhost"
DEFAULT_ROOT = "~/.edgeawq"
TRANSPORTS = ("ssh", "openssh", "local")
MAX_INVENTORY_BYTES = 4 << 20

_CIPHERS = re.compile(r"([A-Za-z0-9@.-]+(,[A-Za-z0-9@.-]+)*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Device:
    """One device as the inventory describes it. Empty text or None: `~/.ssh/config` or a default decides."""

    name: str
    host: str = ""  # host name, address, or an alias of ~/.ssh/config
    user: str = ""
    port: int | None = None
    profile: str = ""  # a name in device_profiles
    model: str = ""  # what `edgeawq push NAME` sends when nothing is named
    identity_file: str = ""
    known_hosts_file: str = ""
    root: str = DEFAULT_ROOT  # the folder on the device that holds releases
    python: str = ""  # the interpreter on the device; found by itself when empty
    keep: int = 3  # releases kept after a push
    transport: str = "ssh"  # "ssh" (built in), "openssh" (the system's ssh program) or "local"
    cipher: str = ""  # names as in ssh_config(5), the best one first, commas between them
    bandwidth_limit: str = ""  # bytes/s that an upload may take, for example "10M"

    @property
    def is_local(self) -> bool:
        """True for this machine, which is reached without SSH."""
        return self.transport == "local"


@dataclass(frozen=True)
class Inventory:
    """All devices of one inventory file. `path` is where it lies, or where it would be written."""

    path: Path
    devices: Mapping[str, Device] = field(default_factory=dict)

    def get(self, name: str) -> Device:
        """Return the device called `name`; `localhost` is always there. UsageError names the closest one."""
        if name in self.devices:
            return self.devices[name]
        if name == LOCAL_DEVICE:
            return Device(name=LOCAL_DEVICE, transport="local", root=_local_root())
        close = difflib.get_close_matches(name, [*self.devices, LOCAL_DEVICE], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"no device is called {name!r} in {self.path}",
            remedy=f"{hint}`edgeawq device list` shows all devices, `edgeawq device add {name} user@host` adds one",
        )

    def all_devices(self) -> list[Device]:
        """Return every device by name, `localhost` included."""
        names = sorted(set(self.devices) | {LOCAL_DEVICE})
        return [self.get(name) for name in names]


def find_inventory(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Return the inventory's path: `explicit`, $EDGEAWQ_INVENTORY, the nearest edgeawq.toml upwards, or the user's.

    The path need not exist, except when it was named by the caller or by the environment and is a folder.
    """
    named = explicit or os.environ.get("EDGEAWQ_INVENTORY")
    if named:
        return Path(named).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    config_home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config_home).expanduser() / "edgeawq" / FILE_NAME


def load_inventory(path: str | os.PathLike[str] | None = None) -> Inventory:
    """Read the inventory; a file that is not there is an empty one, unless the caller named it."""
    file = find_inventory(path)
    try:
        if file.stat().st_size > MAX_INVENTORY_BYTES:
            raise UsageError(f"{file} is larger than {MAX_INVENTORY_BYTES} bytes", remedy="is this an inventory?")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path:
            raise UsageError(
                f"there is no inventory file {file}",
                remedy="check the path, or leave --inventory out to use the default one",
            ) from None
        return Inventory(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the inventory {file} cannot be read: {error}") from error
    return Inventory(file, parse_inventory(text, str(file)))


def parse_inventory(text: str, source: str) -> dict[str, Device]:
    """Return the devices in TOML `text`; UsageError names file, table and key, and the closest known key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not valid TOML: {error}") from error
    _check_keys(document, ("devices",), source, "the file")
    tables = document.get("devices", {})
    if not isinstance(tables, dict):
        raise UsageError(f"{source}: `devices` must be a table", remedy="write [devices.NAME]")
    devices = {}
    for name, table in tables.items():
        check_device_name(name)
        if not isinstance(table, dict):
            raise UsageError(f"{source}: devices.{name} must be a table", remedy=f"write [devices.{name}]")
        devices[name] = _parse_device(name, table, source)
    return devices


def check_device_name(name: str) -> None:
    """Refuse a name that would be trouble in a file name, a shell or a log."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a device name",
            remedy="use 1 to 63 letters, digits, dots, dashes and underscores, the first one a letter or a digit",
        )


def check_device(device: Device) -> None:
    """Refuse settings that look like text but have a meaning of their own: the rate and the ciphers."""
    if device.bandwidth_limit:
        try:
            parse_rate(device.bandwidth_limit)
        except UsageError as error:
            raise UsageError(f"bandwidth_limit: {error.what}", remedy=error.remedy) from None
    if not _CIPHERS.fullmatch(device.cipher):
        raise UsageError(
            f"cipher = {device.cipher!r} is not a list of cipher names",
            remedy="`ssh -Q cipher` lists the names; write commas between them",
        )


def write_device(inventory: Inventory, device: Device) -> Inventory:
    """Add or replace `device` in the inventory's file, keeping comments and order, and return the new inventory."""
    import tomlkit

    document = _open_document(inventory.path)
    tables = document.setdefault("devices", tomlkit.table(is_super_table=True))
    table = tables.get(device.name)
    if table is None:
        table = tomlkit.table()
        tables[device.name] = table
    for key, value in _to_table(device).items():
        table[key] = value
    for key in [key for key in table if key not in _to_table(device)]:
        del table[key]
    _write_atomically(inventory.path, tomlkit.dumps(document))
    return Inventory(inventory.path, {**inventory.devices, device.name: device})


def remove_device(inventory: Inventory, name: str) -> Inventory:
    """Take `name` out of the inventory's file; UsageError when it is not in there."""
    if name not in inventory.devices:
        if name == LOCAL_DEVICE:
            raise UsageError("`localhost` is always there and cannot be removed")
        inventory.get(name)  # raises, with the closest name
    import tomlkit

    document = _open_document(inventory.path)
    del document["devices"][name]
    _write_atomically(inventory.path, tomlkit.dumps(document))
    return Inventory(inventory.path, {key: value for key, value in inventory.devices.items() if key != name})


def _parse_device(name: str, table: dict[str, Any], source: str) -> Device:
    known = {entry.name: entry for entry in fields(Device) if entry.name != "name"}
    where = f"[devices.{name}]"
    _check_keys(table, known, source, where)
    values: dict[str, Any] = {}
    for key, value in table.items():
        wanted = int if key in ("port", "keep") else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = "a number" if wanted is int else "text in quotes"
            raise UsageError(f"{source}: {where} {key} = {value!r} must be {kind}")
        if isinstance(value, str) and ("\0" in value or "\n" in value):
            raise UsageError(f"{source}: {where} {key} must be one line of text")
        values[key] = value
    transport = values.setdefault("transport", "local" if name == LOCAL_DEVICE else "ssh")
    if transport not in TRANSPORTS:
        raise UsageError(
            f"{source}: {where} transport = {transport!r} is not known", remedy=f"use one of {', '.join(TRANSPORTS)}"
        )
    if name == LOCAL_DEVICE and transport != "local":
        raise UsageError(f"{source}: `localhost` always is this machine", remedy="give that device another name")
    if transport != "local" and not values.get("host"):
        raise UsageError(f"{source}: {where} has no host", remedy='add host = "…"')
    if transport == "local":
        values.setdefault("root", _local_root())
    port = values.get("port")
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"{source}: {where} port = {port} is not between 1 and 65535")
    if not 2 <= values.get("keep", 3) <= 1000:
        raise UsageError(
            f"{source}: {where} keep = {values['keep']} is not between 2 and 1000",
            remedy="the current and the previous release are always kept",
        )
    host = values.get("host", "")
    if host.startswith("-") or any(character.isspace() for character in host):
        raise UsageError(f"{source}: {where} host = {host!r} is not a host name")
    device = Device(name=name, **values)
    try:
        check_device(device)
    except UsageError as error:
        raise UsageError(f"{source}: {where} {error.what}", remedy=error.remedy) from None
    return device


def _check_keys(table: Mapping[str, Any], known: Any, source: str, where: str) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(
                f"{source}: {where} has an unknown key {key!r}", remedy=f"{hint}Known keys: {', '.join(sorted(known))}"
            )


def _to_table(device: Device) -> dict[str, str | int]:
    """Return what differs from the defaults; `host` first, as people write it."""
    default = Device(name=device.name, transport="local" if device.name == LOCAL_DEVICE else "ssh")
    table: dict[str, str | int] = {}
    for entry in fields(Device):
        value = getattr(device, entry.name)
        if entry.name != "name" and value is not None and value != getattr(default, entry.name):
            table[entry.name] = value
    return table


def _local_root() -> str:
    return os.environ.get("EDGEAWQ_LOCAL_ROOT") or DEFAULT_ROOT


def _open_document(path: Path) -> Any:
    import tomlkit

    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tomlkit.document()


def _write_atomically(path: Path, text: str) -> None:
    target = path.resolve()  # a symlink (dotfiles) stays a symlink
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        else:
            os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
