"""The keys that a device trusts, seen from the host: reading, pinning and rotating them, signing for it, its log."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeawq.deploy.device_facts import choose_python, gather_facts
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.keys import AskPassphrase, PublicKey, choose_signing_key, load_signing_key
from edgeawq.deploy.push import LOCK_WAIT_S, SignRelease, name_owner
from edgeawq.deploy.receiver.envelope import MAX_KEYS
from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.deploy.release import Release
from edgeawq.deploy.signing import Override, give_counter, read_last_counter, sign_keys, sign_release
from edgeawq.deploy.transport import Transport
from edgeawq.errors import DeployError

MAX_LOG_LINES = 1000


@dataclass(frozen=True)
class DeviceTrust:
    """Which keys a device has pinned, and the newest release it has accepted."""

    pinned: bool = False
    device_id: str = ""
    version: int = 0  # of the set of keys
    keys: tuple[tuple[str, str], ...] = ()  # (id, name)
    counter: int = 0
    counter_release: str = ""
    error: str = ""  # why the device's trust.json cannot be used; nothing is accepted then

    @property
    def key_ids(self) -> list[str]:
        """The ids of the pinned keys."""
        return [identity for identity, _ in self.keys]

    @property
    def names(self) -> str:
        """The pinned keys for people: "default (0123456789abcdef), …"."""
        return ", ".join(f"{name} ({identity})" for identity, name in self.keys)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "keys": [{"id": identity, "name": name} for identity, name in self.keys]}


def parse_device_trust(answer: Any, address: str) -> DeviceTrust:
    """Return what a device says of its keys; DeployError when it is not understood or its file is damaged."""
    try:
        trust = DeviceTrust(
            pinned=answer["pinned"] is True,
            device_id=_shorten(answer["device_id"] or ""),
            version=int(answer["version"] or 0),
            keys=tuple((_shorten(key["id"]), _shorten(key["name"])) for key in answer["keys"][:MAX_KEYS]),
            counter=int(answer["counter"] or 0),
            counter_release=_shorten(answer["counter_release"] or ""),
            error=_shorten(answer["error"] or "", 500),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DeployError(f"{address}: the device's answer about its keys is not understood") from error
    if trust.error:
        raise DeployError(
            f"{address}: {trust.error}",
            remedy="restore that file on the device from a backup; or log in there, remove trust.json and "
            "trust.pinned, and pin the keys anew with `edgeawq key trust`",
        )
    return trust


def sign_for_device(
    trust: DeviceTrust,
    *,
    release_id: str,
    release_sha256: str,
    name: str,
    ask: AskPassphrase,
    key_name: str = "",
    allow_downgrade: bool = False,
    expires_in_s: int | None = None,
    folder: Path | None = None,
) -> str:
    """Return the envelope that a device wants to see for a release; "" when it has no keys pinned.

    allow_downgrade: also permit that the release is older than the newest which this device has accepted.
    """
    if not trust.pinned:
        return ""
    key = load_signing_key(choose_signing_key(trust.key_ids, wanted=key_name, folder=folder), ask, folder)
    counter = give_counter(release_id, folder=folder)
    override = Override(trust.device_id, trust.counter) if allow_downgrade and counter < trust.counter else None
    return sign_release(
        key,
        release_sha256=release_sha256,
        name=name,
        counter=counter,
        expires_in_s=expires_in_s,
        override=override,
    )


def make_release_signer(
    device: str,
    *,
    ask: AskPassphrase,
    key_name: str = "",
    allow_downgrade: bool = False,
    expires_in_s: int | None = None,
    folder: Path | None = None,
) -> SignRelease:
    """Return what `push` calls to get a release signed for the device called `device`; see sign_for_device."""

    def sign(release: Release, trust: dict[str, Any]) -> str:
        return sign_for_device(
            parse_device_trust(trust, device),
            release_id=release.identity,
            release_sha256=hashlib.sha256(release.data).hexdigest(),
            name=release.name,
            ask=ask,
            key_name=key_name,
            allow_downgrade=allow_downgrade,
            expires_in_s=expires_in_s,
            folder=folder,
        )

    return sign


def pin_keys(transport: Transport, device: Device, keys: Sequence[PublicKey]) -> DeviceTrust:
    """Make a device accept nothing but releases signed by one of `keys`. DeployError when it trusts others already."""
    with _locked(transport, device) as client:
        trust = parse_device_trust(client.call("status").get("trust"), transport.address)
        if trust.pinned:
            if sorted(trust.key_ids) == sorted(key.identity for key in keys):
                return trust
            raise DeployError(
                f"{device.name} trusts {trust.names} already",
                remedy=f"edgeawq key rotate {device.name} --to NAME, signed with one of those",
            )
        answer = client.call("pin", keys=[key.to_json() for key in keys])
    return parse_device_trust(answer.get("trust"), transport.address)


def rotate_keys(
    transport: Transport,
    device: Device,
    keys: Sequence[PublicKey],
    *,
    ask: AskPassphrase,
    sign_with: str = "",
    reset_counter: bool = False,
    folder: Path | None = None,
) -> DeviceTrust:
    """Replace the keys that a device trusts, with a signature by one of those that it trusts now.

    reset_counter: also set its release counter to the highest number given here, after a stolen key was misused.
    """
    with _locked(transport, device) as client:
        trust = parse_device_trust(client.call("status").get("trust"), transport.address)
        if not trust.pinned:
            raise DeployError(
                f"{device.name} has no keys pinned", remedy=f"pin them first: edgeawq key trust {device.name}"
            )
        key = load_signing_key(choose_signing_key(trust.key_ids, wanted=sign_with, folder=folder), ask, folder)
        envelope = sign_keys(
            key,
            device_id=trust.device_id,
            version=trust.version + 1,
            keys=keys,
            counter=read_last_counter(folder) if reset_counter else None,
        )
        answer = client.call("rotate", envelope=envelope)
    return parse_device_trust(answer.get("trust"), transport.address)


def read_device_log(transport: Transport, device: Device, count: int) -> list[dict[str, Any]]:
    """Return the last `count` entries of a device's log, the oldest first."""
    with _open(transport, device) as client:
        entries = client.call("log", count=min(count, MAX_LOG_LINES)).get("lines")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DeployError(f"{transport.address}: the device's log is not understood")
    return entries


@contextlib.contextmanager
def _locked(transport: Transport, device: Device) -> Iterator[ReceiverClient]:
    with _open(transport, device) as client:
        client.call("lock", owner=name_owner(), wait_s=LOCK_WAIT_S, force=False)
        yield client
        client.call("unlock")


def _shorten(value: Any, limit: int = 100) -> str:
    """Return what a device says as one short line without control characters."""
    return "".join(character if character.isprintable() else "?" for character in str(value)[:limit])


def _open(transport: Transport, device: Device) -> ReceiverClient:
    python = choose_python(gather_facts(transport, device), device.python)
    return ReceiverClient(transport, python=python.path, root=device.root)
