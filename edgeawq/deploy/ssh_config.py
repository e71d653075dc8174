"""From an inventory entry to an address: `~/.ssh/config`, as the system's ssh reads it."""

from __future__ import annotations

import getpass
import glob
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeawq.deploy.inventory import Device
from edgeawq.errors import UsageError

DEFAULT_IDENTITIES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
DEFAULT_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
MAX_CONFIG_BYTES = 1 << 20
MAX_INCLUDE_DEPTH = 16
MAX_JUMPS = 8


@dataclass(frozen=True)
class Endpoint:
    """One SSH server and all that is needed to log in to it. Paths are expanded."""

    label: str  # what the user calls it, for messages
    host: str
    port: int
    user: str
    identity_files: tuple[Path, ...] = ()  # named by the user; tried before the agent and the default files
    certificate_files: tuple[Path, ...] = ()  # beside those that lie next to their key
    identities_only: bool = False
    known_hosts_files: tuple[Path, ...] = ()  # the first one is where new keys are recorded
    host_key_alias: str = ""
    hash_known_hosts: bool = False
    connect_timeout_s: float = 15.0
    jumps: tuple[Endpoint, ...] = ()  # to be passed through, in this order
    proxy_command: str = ""  # a shell command whose input and output are the connection
    ciphers: tuple[str, ...] = ()  # in this order, the best first; empty: what is fastest with AES instructions

    @property
    def address(self) -> str:
        """user@host:port, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


def resolve_endpoint(device: Device, config_paths: tuple[Path, ...] | None = None) -> Endpoint:
    """Return where and how to reach `device`: what the inventory says, then the SSH configuration, then defaults.

    `config_paths` defaults to ~/.ssh/config and /etc/ssh/ssh_config. UsageError names what cannot be used.
    """
    if config_paths is None:
        config_paths = (Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config"))
    config = _load_config(config_paths, _write_overrides(device))
    return _resolve(config, device.host, device, label=device.name, depth=0)


def parse_jump(text: str) -> tuple[str, str, int | None]:
    """Split one hop of ProxyJump, "[user@]host[:port]" or "ssh://…", into (host, user, port)."""
    rest = text.strip().removeprefix("ssh://").rstrip("/")
    user, _, address = rest.rpartition("@")
    host, port = split_host_port(address)
    if not host or host.startswith("-"):
        raise UsageError(f"ProxyJump {text!r} is not [user@]host[:port]")
    return host, user, port


def split_host_port(address: str) -> tuple[str, int | None]:
    """Split "host", "host:port", "[v6]:port" or a bare IPv6 address. UsageError names a port out of range."""
    host, port = address, ""
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        port = rest.removeprefix(":")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{address!r} is not an address", remedy="write an IPv6 address as [fe80::1]:22")
    elif address.count(":") == 1:
        host, port = address.split(":")
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise UsageError(f"{address!r}: port {port!r} is not between 1 and 65535")
    return host, int(port)


def _resolve(config: Any, alias: str, device: Device | None, label: str, depth: int) -> Endpoint:
    values = _look_up(config, alias)
    host = str(values.get("hostname") or alias)
    port = (device.port if device else None) or _to_port(values.get("port"), alias)
    user = (device.user if device else "") or str(values.get("user") or getpass.getuser())
    if device and device.identity_file:
        identities: list[str] = [device.identity_file]
    else:
        identities = [str(path) for path in values.get("identityfile", [])]
    if device and device.known_hosts_file:
        user_files: tuple[str, ...] = (device.known_hosts_file,)
    else:
        user_files = tuple(str(values.get("userknownhostsfile") or " ".join(DEFAULT_KNOWN_HOSTS)).split())
    global_files = tuple(str(values.get("globalknownhostsfile") or " ".join(GLOBAL_KNOWN_HOSTS)).split())
    jumps = str(values.get("proxyjump") or "")
    jumps = "" if jumps.lower() == "none" else jumps
    return Endpoint(
        label=label,
        host=host,
        port=port,
        user=user,
        identity_files=tuple(Path(path).expanduser() for path in identities),
        certificate_files=tuple(Path(name).expanduser() for name in _as_list(values.get("certificatefile"))),
        identities_only=_is_yes(values.get("identitiesonly")),
        known_hosts_files=tuple(Path(path).expanduser() for path in (*user_files, *global_files) if path != "none"),
        host_key_alias=str(values.get("hostkeyalias") or ""),
        hash_known_hosts=_is_yes(values.get("hashknownhosts")),
        connect_timeout_s=_to_timeout(values.get("connecttimeout"), alias),
        jumps=_resolve_jumps(config, jumps, depth),
        # As in ssh, a jump host counts and not the command, where both are set.
        proxy_command="" if jumps else str(values.get("proxycommand") or ""),
        ciphers=tuple(device.cipher.split(",")) if device and device.cipher else (),
    )


def _resolve_jumps(config: Any, text: str, depth: int) -> tuple[Endpoint, ...]:
    if not text or text.lower() == "none":
        return ()
    jumps: list[Endpoint] = []
    for index, hop in enumerate(text.split(",")):
        host, user, port = parse_jump(hop)
        as_device = Device(name=host, host=host, user=user, port=port)
        endpoint = _resolve(config, host, as_device, label=host, depth=depth + 1) if depth < MAX_JUMPS else None
        if endpoint is None or len(jumps) + len(endpoint.jumps) >= MAX_JUMPS:
            raise UsageError(f"more than {MAX_JUMPS} jump hosts: {text}", remedy="does a jump host jump to itself?")
        # Only the first hop is reached from here, so only its own jumps count (as in ssh).
        jumps.extend(endpoint.jumps if index == 0 else ())
        jumps.append(endpoint)
    return tuple(jumps)


def _write_overrides(device: Device) -> str:
    """Return what the inventory sets as configuration in front of the user's: %p and %r must stand for these values.

    ProxyCommand alone has such marks that matter here; the rest of the inventory is applied afterwards.
    """
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", device.host) or not re.fullmatch(r"[A-Za-z0-9._@\\-]*", device.user):
        return ""
    lines = [f"Host {device.host}"]
    lines += [f"  Port {device.port}"] if device.port else []
    lines += [f"  User {device.user}"] if device.user else []
    return "\n".join(lines) if len(lines) > 1 else ""


def _load_config(paths: tuple[Path, ...], overrides: str) -> Any:
    import paramiko

    # "Host *" ends the last block of one file before the next begins.
    text = "\nHost *\n".join([overrides, *(_read_config(path, 0) for path in paths)])
    config = paramiko.SSHConfig()
    try:
        config.parse(io.StringIO(text))
    except (paramiko.ConfigParseError, paramiko.SSHException, ValueError) as error:
        names = " and ".join(str(path) for path in paths)
        raise UsageError(f"the SSH configuration in {names} is not understood: {error}") from error
    return config


def _read_config(path: Path, depth: int) -> str:
    """Return a configuration file with its Include lines replaced by what they name (paramiko ignores them)."""
    if depth > MAX_INCLUDE_DEPTH:
        raise UsageError(f"{path}: Include is nested more than {MAX_INCLUDE_DEPTH} deep")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    lines: list[str] = []
    block = "Host *"
    for line in text.splitlines():
        words = line.replace("=", " ", 1).split()
        if not words or words[0].lower() != "include":
            if words and words[0].lower() in ("host", "match"):
                block = line
            lines.append(line)
            continue
        for pattern in words[1:]:
            name = Path(pattern.strip('"')).expanduser()
            # A relative name is relative to the folder that ssh itself would use.
            pattern_path = name if name.is_absolute() else path.parent / name
            lines.extend(_read_config(Path(found), depth + 1) for found in sorted(glob.glob(str(pattern_path))))
        lines.append(block)  # a Host block of the included file ends with that file
    return "\n".join(lines)


def _look_up(config: Any, alias: str) -> Mapping[str, Any]:
    import paramiko

    try:
        found: Mapping[str, Any] = config.lookup(alias)
    except (paramiko.ConfigParseError, paramiko.SSHException, ImportError) as error:
        raise UsageError(f"the SSH configuration cannot be used for {alias!r}: {error}") from error
    return found


def _to_port(value: object, alias: str) -> int:
    if value is None:
        return 22
    _, port = split_host_port(f"{alias.replace(':', '_')}:{value}")
    return port or 22


def _to_timeout(value: object, alias: str) -> float:
    if value is None:
        return 15.0
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise UsageError(f"ConnectTimeout {value!r} of {alias!r} is not a number of seconds between 1 and 3600")
    return seconds


def _as_list(value: object) -> list[str]:
    if value is None:
        return []
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]


def _is_yes(value: object) -> bool:
    return str(value or "").lower() in ("yes", "true")
