"""known_hosts files: which key a host is known by. Plain, hashed, wildcard and @revoked lines (sshd(8))."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeawq.errors import HostKeyError

MAX_KNOWN_HOSTS_BYTES = 64 << 20

Verdict = Literal["known", "unknown", "changed", "revoked"]


@dataclass(frozen=True)
class KnownHost:
    """One line of a known_hosts file."""

    marker: str  # "", "@revoked" or "@cert-authority"
    patterns: tuple[str, ...]
    key_type: str
    key: bytes
    path: str
    line: int

    def names(self, host_name: str) -> bool:
        """True when this line is about `host_name` ("host", or "[host]:port" for a port other than 22)."""
        found = False
        for pattern in self.patterns:
            if pattern.startswith("!"):
                if _matches(pattern[1:], host_name):
                    return False
            elif _matches(pattern, host_name):
                found = True
        return found


@dataclass(frozen=True)
class HostKeyFinding:
    """What the known_hosts files say about a key that a host has shown, and the lines that say it."""

    verdict: Verdict
    entries: tuple[KnownHost, ...] = ()


def name_host(host: str, port: int) -> str:
    """Return the name a host has in known_hosts: "host", or "[host]:port" where the port is not 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def format_fingerprint(key: bytes) -> str:
    """Return the SHA-256 fingerprint of a public key blob, written as OpenSSH writes it."""
    digest = hashlib.sha256(key).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def load_known_hosts(paths: Iterable[Path]) -> list[KnownHost]:
    """Read all lines of `paths`; a file that is not there has none. HostKeyError when one cannot be read."""
    entries: list[KnownHost] = []
    for path in paths:
        try:
            if path.stat().st_size > MAX_KNOWN_HOSTS_BYTES:
                raise HostKeyError(f"{path} is larger than {MAX_KNOWN_HOSTS_BYTES} bytes", remedy="is it known_hosts?")
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostKeyError(
                f"{path} cannot be read: {error.strerror}", remedy="check the file's owner and permissions"
            ) from error
        entries.extend(parse_known_hosts(text, str(path)))
    return entries


def parse_known_hosts(text: str, path: str) -> list[KnownHost]:
    """Return the lines of a known_hosts file; like ssh, pass over lines that are not understood."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        marker = parts.pop(0) if parts[0].startswith("@") else ""
        if len(parts) < 3:
            continue
        try:
            key = base64.b64decode(parts[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        entries.append(KnownHost(marker, tuple(parts[0].split(",")), parts[1], key, path, number))
    return entries


def judge_host_key(entries: Sequence[KnownHost], host_name: str, key: bytes) -> HostKeyFinding:
    """Compare the key that `host_name` has shown with what is on record for it.

    The entries of an "unknown" host are the authorities that would have to sign its certificate.
    A host that is on record only with keys of other types has "changed": `preferred_key_types` asks a
    server for a type on record, so an honest one has no reason to show another.
    """
    about = [entry for entry in entries if entry.names(host_name)]
    revoked = [entry for entry in about if entry.marker == "@revoked" and entry.key == key]
    if revoked:
        return HostKeyFinding("revoked", tuple(revoked))
    plain = [entry for entry in about if not entry.marker]
    same = [entry for entry in plain if entry.key == key]
    if same:
        return HostKeyFinding("known", tuple(same))
    if plain:
        return HostKeyFinding("changed", tuple(plain))
    return HostKeyFinding("unknown", tuple(entry for entry in about if entry.marker == "@cert-authority"))


def preferred_key_types(entries: Sequence[KnownHost], host_name: str) -> list[str]:
    """Return the host key algorithms to ask for first: those of the keys on record."""
    types: list[str] = []
    for entry in entries:
        if not entry.marker and entry.names(host_name):
            # One RSA key is used with several signature algorithms (RFC 8332).
            names = ["rsa-sha2-512", "rsa-sha2-256"] if entry.key_type == "ssh-rsa" else [entry.key_type]
            types.extend(name for name in names if name not in types)
    return types


def record_host_key(path: Path, host_name: str, key_type: str, key: bytes, *, hash_name: bool = False) -> None:
    """Append a host key to a known_hosts file, as ssh does."""
    name = hash_host_name(host_name, os.urandom(20)) if hash_name else host_name
    append_known_host(path, f"{name} {key_type} {base64.b64encode(key).decode()}")


def append_known_host(path: Path, line: str) -> None:
    """Append one line, given without its end, to a known_hosts file (made with mode 600 if needed), and fsync it."""
    line += "\n"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                line = "\n" + line
        stream.write(line.encode())
        stream.flush()
        os.fsync(stream.fileno())


def hash_host_name(host_name: str, salt: bytes) -> str:
    """Return `host_name` as `ssh-keygen -H` hides it: |1|salt|HMAC-SHA1(salt, name)."""
    digest = hmac.new(salt, host_name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def _matches(pattern: str, host_name: str) -> bool:
    if pattern.startswith("|1|"):
        try:
            salt = base64.b64decode(pattern.split("|")[2], validate=True)
        except (IndexError, binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hash_host_name(host_name, salt), pattern)
    # Only * and ? are wildcards here; brackets belong to "[host]:port".
    return fnmatch.fnmatchcase(host_name, pattern.lower().replace("[", "[[]"))
