"""Which releases this device accepts: pinned keys, signatures over releases, and a counter that never goes down.

Nothing is pinned at first, and everything is accepted. Once keys are pinned, a release needs a signature by one of
them. Whatever the host sends, nothing but a Refusal comes out of here. docs/design/0004-trust.md says what this is
worth against whom.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from typing import Any

from .envelope import (
    FORMAT,
    KEYS_FIELDS,
    KEYS_TYPE,
    MAX_COUNTER,
    MAX_VERSION,
    RELEASE_TYPE,
    SIGN_AGAIN,
    check_release_payload,
    is_format,
    open_envelope,
    parse_keys,
    parse_object,
    refuse,
)
from .files import is_count, write_file
from .limits import RELEASE_ID
from .refusal import Refusal

MAX_STATE_BYTES = 64 << 10

DEVICE_ID = re.compile(r"[0-9a-f]{32}")


class Trust:
    """The keys that this device trusts and the newest release it has accepted, in `trust.json` below `root`.

    accept, accept_recorded, pin and rotate change the file: the caller holds the device lock.
    """

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, "trust.json")
        # Says that there has to be a trust.json: without it, a file that was lost would mean "trust everybody".
        self.marker = os.path.join(root, "trust.pinned")

    def load(self) -> dict[str, Any] | None:
        """Return what trust.json says; None when nothing was ever pinned. Refusal when it is damaged or was lost."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as stream:
                data = stream.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            if os.path.lexists(self.marker):
                raise self._refuse_state("is not there, though keys were pinned on this device") from None
            return None
        except OSError as error:
            raise self._refuse_state(f"cannot be read ({error.strerror})") from error
        state = parse_object(data) if len(data) <= MAX_STATE_BYTES else None
        if state is None or not is_state(state):
            raise self._refuse_state("is damaged")
        return state

    def describe(self) -> dict[str, Any]:
        """Return what a status shows; a damaged file is named under "error" instead of refused."""
        try:
            state, error = self.load(), None
        except Refusal as refusal:
            state, error = None, refusal.what
        fields = ("device_id", "version", "keys", "counter", "counter_release")
        return {
            "pinned": state is not None or error is not None,
            **{name: state[name] if state else None for name in fields},
            "keys": state["keys"] if state else [],
            "error": error,
        }

    def check_release(self, envelope: object, release_sha256: str, now: float) -> dict[str, Any]:
        """Return the verdict over the release whose description hashes to `release_sha256`; Refusal when it may not be.

        envelope: the bytes (or text) that the host has sent, None when it has sent none; now: this device's clock.
        """
        state = self.load()
        if state is None:
            return {"signed": False, "override": False, **dict.fromkeys(("key", "key_name", "counter", "expires"))}
        if envelope is None:
            names = ", ".join(key["name"] for key in state["keys"])
            raise Refusal(
                "unsigned",
                f"the release is not signed, and this device wants a signature by {names}",
                remedy=SIGN_AGAIN,
            )
        payload, key = open_envelope(envelope, RELEASE_TYPE, state["keys"])
        check_release_payload(payload)
        if payload["release_sha256"] != release_sha256:
            raise refuse("the signature is for another release than the one that was sent")
        if payload["expires"] is not None and payload["expires"] < now:
            raise Refusal(
                "expired",
                f"the signature expired at {format_time(payload['expires'])}; "
                f"this device's clock says {format_time(now)}",
                remedy="sign the release again by pushing it anew, or set the device's clock if it is wrong",
            )
        self._check_counter(payload, state)
        return {
            "signed": True,
            "key": key["id"],
            "key_name": key["name"],
            "counter": payload["counter"],
            "expires": payload["expires"],
            "override": payload["counter"] < state["counter"],
        }

    def accept(self, verdict: dict[str, Any], release_id: str) -> None:
        """Raise the stored counter to the one of a release that is about to become the current one."""
        state = self.load()
        if state is None:
            return
        if not verdict["signed"] or all(key["id"] != verdict["key"] for key in state["keys"]):
            raise refuse("keys were pinned or changed on this device since the release was verified")
        if verdict["counter"] < state["counter"] and not verdict["override"]:
            raise refuse_downgrade(verdict["counter"], state, "")
        if verdict["counter"] > state["counter"]:
            self._write({**state, "counter": verdict["counter"], "counter_release": release_id})

    def accept_recorded(self, recorded: object, release_id: str) -> None:
        """Let a release become the current one again that is on the device: a key trusted now had signed it.

        recorded: the verdict that was kept when it came. Neither expiry nor a lower counter count: going back to what
        this device has is allowed. A release that came but was never switched to raises the counter now.
        """
        state = self.load()
        if state is None:
            return
        verdict = recorded if isinstance(recorded, dict) else {}
        key, counter = verdict.get("key"), verdict.get("counter")
        if all(entry["id"] != key for entry in state["keys"]):
            by = f"was signed by the key {str(key)[:16]}, which is no longer trusted" if key else "is not signed"
            raise refuse(f"release {release_id} {by}, and this device runs signed releases only")
        if is_count(counter, MAX_COUNTER) and counter > state["counter"]:
            self._write({**state, "counter": counter, "counter_release": release_id})

    def pin(self, keys: object) -> dict[str, Any]:
        """Trust exactly `keys` from now on; refused when keys are pinned already. Return the new description."""
        if self.load() is not None:
            raise Refusal(
                "pinned",
                "keys are pinned on this device already",
                remedy="`edgeawq key rotate` changes them, signed with one of them",
            )
        state = {"format": FORMAT, "device_id": secrets.token_hex(16), "version": 1, "keys": parse_keys(keys)}
        self._write({**state, "counter": 0, "counter_release": None})
        return self.describe()

    def rotate(self, envelope: object) -> dict[str, Any]:
        """Replace the pinned keys by those in `envelope`, signed by one of the present. Return the new description."""
        state = self.load()
        if state is None:
            raise Refusal(
                "unpinned", "no keys are pinned on this device", remedy="pin them with `edgeawq key trust` first"
            )
        payload, _ = open_envelope(envelope, KEYS_TYPE, state["keys"])
        if set(payload) != KEYS_FIELDS or payload["type"] != "keys" or not is_format(payload["format"]):
            raise refuse("the signed list of keys is of another format")
        if payload["device_id"] != state["device_id"]:
            raise refuse("the signed list of keys is for another device")
        if not is_count(payload["version"], MAX_VERSION) or payload["version"] != state["version"] + 1:
            raise refuse(
                f"the signed list of keys has the version {str(payload['version'])[:20]}, "
                f"this device expects {state['version'] + 1}"
            )
        changed = {**state, "version": payload["version"], "keys": parse_keys(payload["keys"])}
        if payload["counter"] is not None:
            # The way back from a stolen key that has pushed the counter up to where no honest release follows.
            if not is_count(payload["counter"], MAX_COUNTER):
                raise refuse("the counter in the signed list of keys is not a number")
            changed.update(counter=payload["counter"], counter_release=None)
        self._write(changed)
        return self.describe()

    def _check_counter(self, payload: dict[str, Any], state: dict[str, Any]) -> None:
        if payload["counter"] >= state["counter"]:
            return
        override = payload["override"]
        if override is None:
            raise refuse_downgrade(payload["counter"], state, "")
        if override["device_id"] != state["device_id"]:
            raise refuse_downgrade(payload["counter"], state, "; the permission to do so is for another device")
        if override["counter"] != state["counter"]:
            raise refuse_downgrade(
                payload["counter"], state, f"; the permission to do so was for the counter {override['counter']}"
            )

    def _write(self, state: dict[str, Any]) -> None:
        write_file(self.path, json.dumps(state, indent=1).encode())
        if not os.path.lexists(self.marker):
            write_file(self.marker, b"keys are pinned: trust.json belongs to this folder\n")

    def _refuse_state(self, what: str) -> Refusal:
        return Refusal(
            "trust",
            f"{self.path} {what}; nothing is accepted without it",
            remedy=f"restore it from a backup, or log in to the device, remove trust.json and trust.pinned in "
            f"{os.path.dirname(self.path)}, and pin the keys anew with `edgeawq key trust`",
        )


def is_state(state: dict[str, Any]) -> bool:
    """True when trust.json says everything that it has to say."""
    device_id, release = state.get("device_id"), state.get("counter_release")
    try:
        parse_keys(state.get("keys"))
    except Refusal:
        return False
    return (
        is_format(state.get("format"))
        and isinstance(device_id, str)
        and DEVICE_ID.fullmatch(device_id) is not None
        and is_count(state.get("version"), MAX_VERSION)
        and is_count(state.get("counter"), MAX_COUNTER)
        and (release is None or (isinstance(release, str) and RELEASE_ID.fullmatch(release) is not None))
    )


def refuse_downgrade(counter: int, state: dict[str, Any], why: str) -> Refusal:
    """Return the refusal of a release that is older than the newest that this device has accepted."""
    return Refusal(
        "downgrade",
        f"the release is older (counter {counter}) than the newest that this device has accepted "
        f"({state['counter']}, release {state['counter_release'] or '-'}){why}",
        remedy="push a newer one, or say --allow-downgrade if it has to be this one",
        device_id=state["device_id"],
        counter=state["counter"],
    )


def format_time(moment: float) -> str:
    """Return a Unix time for people; the device's clock may say anything."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
    except (ValueError, OverflowError, OSError):
        return f"{moment} s"
