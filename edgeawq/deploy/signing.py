"""Signing on the host: envelopes over releases and key lists, and the counter that orders releases.

What is signed is described in docs/design/0004-trust.md; the device's half is edgeawq/deploy/receiver/trust.py.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeawq.deploy.keys import PublicKey, SigningKey, find_key_folder, lock_store
from edgeawq.deploy.receiver.envelope import (
    FORMAT,
    KEYS_TYPE,
    MAX_COUNTER,
    MAX_KEYS,
    RELEASE_TYPE,
    encode_canonical,
    encode_pae,
)
from edgeawq.deploy.receiver.files import is_count, write_file
from edgeawq.deploy.receiver.limits import RELEASE_ID
from edgeawq.errors import DeployError, UsageError

LEDGER_NAME = "releases.json"
MAX_LEDGER_BYTES = 64 << 20

_LIFETIME = re.compile(r"([0-9]{1,6})([smhdw])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Override:
    """The permission to go back to an older release: on one device, as long as it has this counter."""

    device_id: str
    counter: int

    def to_json(self) -> dict[str, Any]:
        """Return the permission as it is signed."""
        return {"device_id": self.device_id, "counter": self.counter}


def sign_payload(payload_type: str, payload: Mapping[str, Any], keys: Sequence[SigningKey]) -> str:
    """Return `payload` in a DSSE envelope with one signature of each key, as JSON text."""
    data = encode_canonical(dict(payload))
    message = encode_pae(payload_type, data)
    envelope = {
        "payloadType": payload_type,
        "payload": base64.b64encode(data).decode(),
        "signatures": [
            {"keyid": key.public.identity, "sig": base64.b64encode(key.sign(message)).decode()} for key in keys
        ],
    }
    return json.dumps(envelope, sort_keys=True, separators=(",", ":"))


def sign_release(
    key: SigningKey,
    *,
    release_sha256: str,
    name: str,
    counter: int,
    expires_in_s: int | None = None,
    override: Override | None = None,
    now: float | None = None,
) -> str:
    """Return the envelope for the release whose description (release.json) hashes to `release_sha256`."""
    moment = int(time.time() if now is None else now)
    payload = {
        "type": "release",
        "format": FORMAT,
        "release_sha256": release_sha256,
        "name": name,
        "counter": counter,
        "signed_at": moment,
        "expires": None if expires_in_s is None else moment + expires_in_s,
        "override": override.to_json() if override else None,
    }
    return sign_payload(RELEASE_TYPE, payload, [key])


def sign_keys(
    key: SigningKey, *, device_id: str, version: int, keys: Sequence[PublicKey], counter: int | None = None
) -> str:
    """Return the envelope that replaces a device's keys by `keys`.

    version: one more than the device has now; counter: None, or what the device's release counter is set to.
    """
    if not 1 <= len(keys) <= MAX_KEYS:
        raise UsageError(f"a device trusts 1 to {MAX_KEYS} keys, not {len(keys)}", remedy="name fewer keys")
    payload = {
        "type": "keys",
        "format": FORMAT,
        "device_id": device_id,
        "version": version,
        "keys": [entry.to_json() for entry in keys],
        "counter": counter,
    }
    return sign_payload(KEYS_TYPE, payload, [key])


def give_counter(release_id: str, *, folder: Path | None = None, now: float | None = None) -> int:
    """Return the counter of a release: a number above all given before at its first signing, the same ever after.

    So the release that was made later has the higher number, whatever is pushed when. The numbers are Unix times
    where that is possible: what is signed on another computer, or after the ledger was lost, fits in.
    """
    folder = folder or find_key_folder()
    with lock_store(folder):
        path = folder / LEDGER_NAME
        last, releases = _read_ledger(path)
        if release_id in releases:
            return releases[release_id]
        counter = max(last + 1, int(time.time() if now is None else now))
        if counter > MAX_COUNTER:
            raise DeployError(
                f"the release counter {counter} in {path} is beyond {MAX_COUNTER}",
                remedy="is this computer's clock right? Restore the file from a backup",
            )
        releases[release_id] = counter
        ledger = {"format": FORMAT, "last": counter, "releases": releases}
        write_file(str(path), json.dumps(ledger, indent=0).encode(), 0o600)
    return counter


def read_last_counter(folder: Path | None = None) -> int:
    """Return the highest counter given so far; 0 before the first."""
    folder = folder or find_key_folder()
    return _read_ledger(folder / LEDGER_NAME)[0]


def parse_lifetime(text: str) -> int:
    """Return the seconds in "90d", "12h", "2w", …"""
    found = _LIFETIME.fullmatch(text)
    if not found or not int(found[1]):
        raise UsageError(f"{text!r} is not a duration", remedy="write 12h, 90d or 2w")
    return int(found[1]) * _UNIT_S[found[2]]


def _read_ledger(path: Path) -> tuple[int, dict[str, int]]:
    """Return the last counter and those of all releases. A damaged ledger is an error: old releases would look new."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_LEDGER_BYTES + 1)
    except FileNotFoundError:
        return 0, {}
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}", remedy="check its owner and mode") from error
    try:
        ledger: Any = json.loads(data) if len(data) <= MAX_LEDGER_BYTES else None
        last, releases = ledger["last"], ledger["releases"]
        good = is_count(last, MAX_COUNTER) and isinstance(releases, dict)
        good = good and all(RELEASE_ID.fullmatch(name) and is_count(count, last) for name, count in releases.items())
    except (ValueError, RecursionError, TypeError, KeyError):
        good = False
    if not good:
        raise DeployError(
            f"{path}, which says in which order releases were signed, is damaged",
            remedy="restore it from a backup; if there is none, remove it: releases that are pushed again then count "
            "as new ones",
        )
    return last, releases
