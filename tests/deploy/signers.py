"""Keys and signed releases for tests."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeawq.deploy.keys import PublicKey, SigningKey
from edgeawq.deploy.receiver.envelope import RELEASE_TYPE, encode_pae
from edgeawq.deploy.signing import sign_release

NOW = 1_800_000_000.0


def make_signer(name: str = "default") -> SigningKey:
    """A fresh key pair."""
    private = Ed25519PrivateKey.generate()
    return SigningKey(PublicKey(name, private.public_key().public_bytes_raw(), True), private)


def random_release() -> tuple[str, str]:
    """The SHA-256 and the id of a release that nobody has seen before."""
    digest = hashlib.sha256(os.urandom(16)).hexdigest()
    return digest, digest[:16]


def sign(signer: SigningKey, digest: str, **options: Any) -> bytes:
    """An envelope over a release."""
    settings = {"name": "tiny", "counter": 5, "now": NOW, **options}
    return sign_release(signer, release_sha256=digest, **settings).encode()


def release_payload(digest: str, **changes: Any) -> dict[str, Any]:
    """What is signed for a release, with fields changed; None as a change of "drop" takes a field out."""
    payload = {
        "type": "release",
        "format": 1,
        "release_sha256": digest,
        "name": "tiny",
        "counter": 5,
        "signed_at": int(NOW),
        "expires": None,
        "override": None,
        **changes,
    }
    return {name: value for name, value in payload.items() if value != "drop"}


def seal(payload: bytes, signers: Sequence[SigningKey], payload_type: str = RELEASE_TYPE) -> bytes:
    """Any bytes in a well-formed envelope with valid signatures."""
    message = encode_pae(payload_type, payload)
    signatures = [
        {"keyid": signer.public.identity, "sig": base64.b64encode(signer.sign(message)).decode()} for signer in signers
    ]
    envelope = {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": signatures,
    }
    return json.dumps(envelope).encode()


def change_envelope(envelope: bytes, **changes: Any) -> bytes:
    """The envelope with outer fields replaced."""
    return json.dumps({**json.loads(envelope), **changes}).encode()
