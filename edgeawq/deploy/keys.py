"""The key store on the host: ed25519 keys that sign releases, and other people's public keys.

NAME.key is a private key (PKCS8, PEM, mode 0600, perhaps with a passphrase), NAME.pub one line:
"edgeawq-ed25519 BASE64 NAME". A key's id is the first 64 bits of the SHA-256 of its public half.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeawq.deploy.receiver.ed25519 import is_public_key
from edgeawq.deploy.receiver.envelope import decode_base64, key_id
from edgeawq.deploy.receiver.files import write_file
from edgeawq.errors import DeployError, UntrustedReleaseError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DEFAULT_KEY = "default"
LINE_KIND = "edgeawq-ed25519"
PASSPHRASE_VARIABLE = "EDGEAWQ_KEY_PASSPHRASE"
MAX_KEY_FILE_BYTES = 16 << 10

AskPassphrase = Callable[[str], "str | None"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class PublicKey:
    """A public key and what people call it. `has_private`: the private half is in the store as well."""

    name: str
    public: bytes  # 32 bytes
    has_private: bool = False

    @property
    def identity(self) -> str:
        """The key's id."""
        return key_id(self.public)

    @property
    def line(self) -> str:
        """The line that other people import."""
        return f"{LINE_KIND} {base64.b64encode(self.public).decode()} {self.name}"

    def to_json(self) -> dict[str, str]:
        """Return the key as a device pins it."""
        return {"id": self.identity, "public": base64.b64encode(self.public).decode(), "name": self.name}


@dataclass(frozen=True)
class SigningKey:
    """A key that can sign."""

    public: PublicKey
    private: Ed25519PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature over `message`."""
        return self.private.sign(message)


def find_key_folder() -> Path:
    """Return the key store: $EDGEAWQ_KEYS, or edgeawq/keys in $XDG_CONFIG_HOME or ~/.config. It need not exist."""
    named = os.environ.get("EDGEAWQ_KEYS")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "edgeawq" / "keys"


def create_key(name: str, *, passphrase: str = "", folder: Path | None = None) -> PublicKey:
    """Make a new key pair in the store. UsageError when there is a key of that name; nothing is ever replaced."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
    )

    folder = folder or find_key_folder()
    private = Ed25519PrivateKey.generate()
    public = PublicKey(check_key_name(name), private.public_key().public_bytes_raw(), True)
    protection: KeySerializationEncryption = NoEncryption()
    if passphrase:
        protection = BestAvailableEncryption(passphrase.encode())
    with lock_store(folder):
        for path in _paths(folder, name):
            if os.path.lexists(path):
                raise UsageError(f"there is a key {name!r} already: {path}", remedy="choose another name")
        private_path, public_path = _paths(folder, name)
        write_file(str(private_path), private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), 0o600)
        write_file(str(public_path), f"{public.line}\n".encode())
    return public


def list_keys(folder: Path | None = None) -> list[PublicKey]:
    """Return all keys of the store, by name."""
    folder = folder or find_key_folder()
    return [_read_public(path) for path in sorted(folder.glob("*.pub"))] if folder.is_dir() else []


def find_key(name: str, folder: Path | None = None) -> PublicKey:
    """Return the key called `name`. UsageError when there is none."""
    folder = folder or find_key_folder()
    path = _paths(folder, check_key_name(name))[1]
    if not path.is_file():
        names = ", ".join(key.name for key in list_keys(folder))
        raise UsageError(
            f"there is no key {name!r} in {folder}",
            remedy=f"there are {names}" if names else f"make one with `edgeawq key init {name}`",
        )
    return _read_public(path)


def import_public_key(text: str, *, name: str = "", folder: Path | None = None) -> PublicKey:
    """Put somebody else's public key into the store, under the name in its line or under `name`."""
    folder = folder or find_key_folder()
    found = parse_public_line(text, source="the file")
    key = PublicKey(check_key_name(name or found.name), found.public)
    private_path, public_path = _paths(folder, key.name)
    with lock_store(folder):
        if public_path.exists() and _read_public(public_path).public == key.public:
            return _read_public(public_path)
        if os.path.lexists(public_path) or os.path.lexists(private_path):
            raise UsageError(f"there is another key {key.name!r} in {folder}", remedy="give it a name with --name")
        write_file(str(public_path), f"{key.line}\n".encode())
    return key


def load_signing_key(name: str, ask: AskPassphrase, folder: Path | None = None) -> SigningKey:
    """Return the key `name` ready to sign; its passphrase comes from $EDGEAWQ_KEY_PASSPHRASE or from `ask`.

    Refused: a private key that other users can read, one that does not belong to NAME.pub, a wrong passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    folder = folder or find_key_folder()
    listed = find_key(name, folder)
    path = _paths(folder, name)[0]
    if not path.is_file():
        raise UsageError(f"the private half of the key {name!r} is not here", remedy="use a key of your own")
    data = _read_private(path)
    try:
        try:
            private = load_pem_private_key(data, password=None)
        except TypeError:  # it has a passphrase
            private = load_pem_private_key(data, password=_find_passphrase(name, ask).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(
            f"{path} cannot be opened: the passphrase is wrong, or the file is damaged",
            remedy=f"try again; in scripts, ${PASSPHRASE_VARIABLE} holds the passphrase",
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise DeployError(f"{path} is not an ed25519 key", remedy="make one with `edgeawq key init`")
    if private.public_key().public_bytes_raw() != listed.public:
        raise DeployError(
            f"{path} and {name}.pub do not belong together", remedy="restore the one that was changed from a backup"
        )
    return SigningKey(listed, private)


def choose_signing_key(trusted: Collection[str], *, wanted: str = "", folder: Path | None = None) -> str:
    """Return the name of the key to sign with for a device that trusts the key ids `trusted`.

    wanted: the user's choice. Without one, "default" if it will do, else the first that will.
    """
    own = [key for key in list_keys(folder) if key.has_private]
    if wanted:
        key = find_key(wanted, folder)
        if key.identity not in trusted:
            raise UsageError(
                f"the device does not trust the key {wanted!r} ({key.identity}), only {', '.join(trusted)}",
                remedy="name another one, or add it with `edgeawq key rotate`",
            )
        return wanted
    usable = [key.name for key in own if key.identity in trusted]
    if not usable:
        raise UntrustedReleaseError(
            f"the device wants a signature by one of the keys {', '.join(trusted)}, and none of them is here",
            remedy=f"copy the private key into {folder or find_key_folder()}, or let its owner push",
        )
    return DEFAULT_KEY if DEFAULT_KEY in usable else usable[0]


def parse_public_line(text: str, *, source: str) -> PublicKey:
    """Return the public key in one line of text. UsageError when it is none."""
    words = text.split()
    public = decode_base64(words[1], 32) if len(words) == 3 and words[0] == LINE_KIND else None
    if public is None or not is_public_key(public) or not _NAME.fullmatch(words[2]):
        raise UsageError(
            f"{source} is not a public key of edgeawq",
            remedy=f"it has one line, '{LINE_KIND} BASE64 NAME': what `edgeawq key show` prints",
        )
    return PublicKey(words[2], public)


def check_key_name(name: str) -> str:
    """Return `name` if a key may be called so."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a key", remedy="use up to 63 letters, digits, '.', '_' and '-'"
        )
    return name


@contextlib.contextmanager
def lock_store(folder: Path) -> Iterator[None]:
    """Hold the key store for a change; other processes wait. The folder is made if need be, for its owner only."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeployError(
            f"the key store {folder} cannot be changed: {error.strerror or error}",
            remedy="check the disk and the folder's owner; $EDGEAWQ_KEYS names another folder",
        ) from error


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.key", folder / f"{name}.pub"


def _read_public(path: Path) -> PublicKey:
    try:
        text = path.read_bytes()[:MAX_KEY_FILE_BYTES].decode("utf-8", "replace")
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}", remedy="check its owner and mode") from error
    key = parse_public_line(text, source=str(path))
    return PublicKey(path.name.removesuffix(".pub"), key.public, path.with_suffix(".key").is_file())


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise DeployError(
                    f"{path} can be read by other users (mode {mode:04o})",
                    remedy=f"chmod 600 {path}; if others have had access, make a new key and rotate to it",
                )
            return stream.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}", remedy="check its owner and mode") from error


def _find_passphrase(name: str, ask: AskPassphrase) -> str:
    found = os.environ.get(PASSPHRASE_VARIABLE) or ask(f"Passphrase of the key {name!r}: ")
    if not found:
        raise DeployError(
            f"the key {name!r} has a passphrase", remedy=f"run this in a terminal, or set ${PASSPHRASE_VARIABLE}"
        )
    return found
