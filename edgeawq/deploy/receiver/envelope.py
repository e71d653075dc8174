"""Signed envelopes in the format DSSE (github.com/secure-systems-lab/dsse, protocol 1.0), and what may be in them.

A signature is over the payload's type and the payload, and nothing of the payload is looked at before a signature was
found valid. Whatever is given to these functions, nothing but a Refusal comes out of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from .ed25519 import KEY_BYTES, SIGNATURE_BYTES, is_public_key, verify
from .files import is_count, is_text
from .limits import HASH, MAX_NAME_BYTES, MAX_SIGNATURE_BYTES
from .refusal import Refusal

FORMAT = 1
RELEASE_TYPE = "application/vnd.edgeawq.release+json"
KEYS_TYPE = "application/vnd.edgeawq.keys+json"

MAX_KEYS = 8
MAX_SIGNATURES = 8
MAX_KEY_NAME_BYTES = 64
MAX_COUNTER = (1 << 53) - 1  # what every JSON reader holds exactly
MAX_VERSION = 1 << 31
MAX_TIME = 253_402_300_799  # the end of the year 9999

RELEASE_FIELDS = {"type", "format", "release_sha256", "name", "counter", "signed_at", "expires", "override"}
KEYS_FIELDS = {"type", "format", "device_id", "version", "keys", "counter"}

SIGN_AGAIN = "sign it with a key that the device trusts: `edgeawq key list` shows yours, `edgeawq status` the device's"


def encode_pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a signature is over: DSSE's pre-authentication encoding of type and payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def encode_canonical(value: dict[str, Any]) -> bytes:
    """Return the one way to write `value` as JSON: sorted keys, no white space, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def key_id(public: bytes) -> str:
    """Return a public key's name: the first 64 bits of its SHA-256, in hexadecimal."""
    return hashlib.sha256(public).hexdigest()[:16]


def open_envelope(
    envelope: object, payload_type: str, keys: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the payload of an envelope and the key of `keys` that has signed it; Refusal when none has."""
    data = envelope.encode("utf-8", "replace") if isinstance(envelope, str) else envelope
    if not isinstance(data, bytes) or len(data) > MAX_SIGNATURE_BYTES:
        raise refuse(f"the signature is not an envelope of at most {MAX_SIGNATURE_BYTES} bytes")
    outer = parse_object(data)
    if outer is None or outer.get("payloadType") != payload_type:
        raise refuse(f"the signature is not an envelope of the type {payload_type}")
    payload = decode_base64(outer.get("payload"), MAX_SIGNATURE_BYTES)
    signatures = outer.get("signatures")
    if payload is None or not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise refuse(f"the envelope has no payload, or not 1 to {MAX_SIGNATURES} signatures")
    message = encode_pae(payload_type, payload)
    known = {key["id"]: key for key in keys}
    claimed = False
    for entry in signatures:
        entry = entry if isinstance(entry, dict) else {}
        name, signature = entry.get("keyid"), decode_base64(entry.get("sig"), SIGNATURE_BYTES)
        if not is_text(name, MAX_KEY_NAME_BYTES) or signature is None:
            raise refuse("a signature in the envelope is malformed")
        # The key id is not signed: it only says which key to try.
        key = known.get(name)
        if key is not None:
            claimed = True
            if verify(base64.b64decode(key["public"]), message, signature):
                found = parse_object(payload)
                if found is None or encode_canonical(found) != payload:
                    raise refuse("the signed text is not canonical JSON")
                return found, key
    if claimed:
        raise refuse("the signature is not valid: what was signed has been changed")
    raise refuse(f"the signature is by none of the keys that this device trusts ({', '.join(known)})")


def check_release_payload(payload: dict[str, Any]) -> None:
    """Refuse a signed payload that is not one for a release."""
    expires, override = payload.get("expires"), payload.get("override")
    good = (
        set(payload) == RELEASE_FIELDS
        and payload["type"] == "release"
        and is_format(payload["format"])
        and isinstance(payload["release_sha256"], str)
        and HASH.fullmatch(payload["release_sha256"]) is not None
        and is_text(payload["name"], MAX_NAME_BYTES)
        and is_count(payload["counter"], MAX_COUNTER)
        and is_count(payload["signed_at"], MAX_TIME)
        and (expires is None or is_count(expires, MAX_TIME))
        and (override is None or is_override(override))
    )
    if not good:
        raise refuse("the signed text does not describe a release as it should")


def is_format(value: object) -> bool:
    """True for the one version of the formats here."""
    return is_count(value, FORMAT) and value == FORMAT


def is_override(value: Any) -> bool:
    """True for {"device_id", "counter"}: on that device, as long as it has that counter."""
    return (
        isinstance(value, dict)
        and set(value) == {"device_id", "counter"}
        and isinstance(value["device_id"], str)
        and is_count(value["counter"], MAX_COUNTER)
    )


def parse_keys(value: object) -> list[dict[str, Any]]:
    """Return a list of 1 to 8 public keys, each {"id", "public", "name"}, after every field was checked."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_KEYS:
        raise refuse(f"a list of 1 to {MAX_KEYS} keys is needed")
    keys = []
    for entry in value:
        entry = entry if isinstance(entry, dict) else {}
        public = decode_base64(entry.get("public"), KEY_BYTES)
        if set(entry) != {"id", "public", "name"} or public is None or not is_public_key(public):
            raise refuse("a key is not an ed25519 public key")
        if entry["id"] != key_id(public) or not entry["name"] or not is_text(entry["name"], MAX_KEY_NAME_BYTES):
            raise refuse("a key's id is not that of the key, or its name is too long")
        keys.append(dict(entry))
    if len({key["id"] for key in keys}) != len(keys):
        raise refuse("a key is listed twice")
    return keys


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `data` is; None when it is something else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def decode_base64(value: object, limit: int) -> bytes | None:
    """Return what a string stands for in standard base64, written in the one canonical way; None if it is not."""
    if not isinstance(value, str):
        return None
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return data if len(data) <= limit and base64.b64encode(data).decode() == value else None


def refuse(what: str) -> Refusal:
    """Return the refusal of a signature."""
    return Refusal("untrusted", what, remedy=SIGN_AGAIN)
