"""TUF's list of attacks, end to end through a push to a device with pinned keys.

The attacker has the connection to the device (a stolen SSH key, say), but not a signing key, unless a test says so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.keys import SigningKey
from edgeawq.deploy.push import SignRelease
from edgeawq.deploy.receiver_client import ReceiverClient
from edgeawq.deploy.release import Release
from edgeawq.deploy.signing import sign_keys
from edgeawq.errors import BundleError, DeviceUnfitError, EdgeawqError, TransferError, UntrustedReleaseError
from tests.deploy.fakes import make_bundle
from tests.deploy.faults.harness import HarnessTransport, Stage, case, shift_clock
from tests.deploy.invariants import answer, leftovers
from tests.deploy.receiver.driver import Wire
from tests.deploy.signers import make_signer, sign

CHECKED = "refused with a reason before anything is switched; the old release runs and answers; an honest push goes on"


def signed_by(key: SigningKey, counter: int, **options: Any) -> SignRelease:
    """What a push calls to get its signature."""

    def give(release: Release, trust: dict[str, Any]) -> str:
        digest = hashlib.sha256(release.data).hexdigest()
        return sign(key, digest, counter=counter, now=time.time(), **options).decode()

    return give


def client_of(stage: Stage, root: Path) -> ReceiverClient:
    return ReceiverClient(HarnessTransport(), python=stage.facts.pythons[0].path, root=str(root))


@pytest.fixture
def key() -> SigningKey:
    return make_signer("owner")


@pytest.fixture
def root(stage: Stage, key: SigningKey) -> Path:
    """A device that trusts one key, and runs "old", signed with the counter 10."""
    root = stage.fresh()
    with client_of(stage, root) as client:
        client.call("lock", owner="test")
        client.call("pin", keys=[key.public.to_json()])
    stage.push(root, stage.old, sign=signed_by(key, 10))
    return root


def refuse(
    stage: Stage,
    root: Path,
    key: SigningKey,
    kind: str,
    attack: Callable[[], object],
    *,
    error: type[EdgeawqError] | tuple[type[EdgeawqError], ...] = UntrustedReleaseError,
    next_counter: int = 11,
) -> EdgeawqError:
    """Let the attack happen; it must fail, change nothing, and not stand in the way of the owner's next push."""
    with case(f"attack: {kind}", CHECKED):
        before = json.loads((root / "trust.json").read_text())
        with pytest.raises(error) as caught:
            attack()
        assert answer(root) == "old" and json.loads((root / "trust.json").read_text()) == before
        stage.push(root, sign=signed_by(key, next_counter))
        assert answer(root) == "new" and leftovers(root) == []
    found: EdgeawqError = caught.value
    return found


def test_arbitrary_installation_unsigned(stage: Stage, root: Path, key: SigningKey) -> None:
    found = refuse(stage, root, key, "arbitrary installation", lambda: stage.push(root))
    assert "not signed" in found.what


def test_arbitrary_installation_signed_by_somebody_else(stage: Stage, root: Path, key: SigningKey) -> None:
    stranger = make_signer("owner")
    refuse(stage, root, key, "arbitrary installation", lambda: stage.push(root, sign=signed_by(stranger, 99)))


def test_arbitrary_installation_with_the_owner_s_key_id(stage: Stage, root: Path, key: SigningKey) -> None:
    stranger = make_signer("owner")

    def forge(release: Release, trust: dict[str, Any]) -> str:
        envelope = json.loads(signed_by(stranger, 99)(release, trust))
        envelope["signatures"][0]["keyid"] = key.public.identity
        return json.dumps(envelope)

    refuse(stage, root, key, "arbitrary installation", lambda: stage.push(root, sign=forge))


@pytest.mark.parametrize("text", ["x", "{}", "[]", '{"payload": 5}', "[" * 5000, '{"signatures": [{}]}', "\x00"])
def test_arbitrary_installation_with_a_broken_envelope(stage: Stage, root: Path, key: SigningKey, text: str) -> None:
    refuse(stage, root, key, "arbitrary installation", lambda: stage.push(root, sign=lambda release, trust: text))


def test_mix_and_match_another_release_s_signature(stage: Stage, root: Path, key: SigningKey) -> None:
    old = (root / "current" / "signature.json").read_text()
    refuse(stage, root, key, "mix-and-match", lambda: stage.push(root, sign=lambda release, trust: old))


def test_mix_and_match_files_of_two_signed_releases(stage: Stage, root: Path, key: SigningKey, tmp_path: Path) -> None:
    """The description is a signed one, one of its files comes from another signed release."""
    other = make_bundle(tmp_path / "other", marker="other")
    released: list[Release] = []

    def keep(release: Release, trust: dict[str, Any]) -> str:
        released.append(release)
        return signed_by(key, 12)(release, trust)

    def attack() -> None:
        import dataclasses

        mixed = tmp_path / "mixed"
        make_bundle(mixed, marker="mixed")
        from edgeawq.deploy import push as push_module

        real = push_module.describe_release

        def describe(**arguments: Any) -> Release:
            release = real(**arguments)
            weights = other / "weights.bin"
            files = [
                dataclasses.replace(file, source=weights) if file.path == "bundle/weights.bin" else file
                for file in release.files
            ]
            return dataclasses.replace(release, files=tuple(files))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(push_module, "describe_release", describe)
            stage.push(root, mixed, sign=keep)

    with case("attack: mix-and-match", CHECKED):
        with pytest.raises((TransferError, BundleError), match="hash"):
            attack()
        assert answer(root) == "old" and released
        stage.push(root, sign=signed_by(key, 13))
        assert answer(root) == "new" and leftovers(root) == []


def test_rollback_to_an_older_release(stage: Stage, root: Path, key: SigningKey) -> None:
    """The attacker has kept an older release with its good signature."""
    found = refuse(stage, root, key, "rollback", lambda: stage.push(root, sign=signed_by(key, 9)))
    assert "older" in found.what


def test_rollback_is_possible_for_the_owner_who_says_so(stage: Stage, root: Path, key: SigningKey) -> None:
    from edgeawq.deploy.signing import Override

    state = json.loads((root / "trust.json").read_text())
    with case("attack: rollback", "an override is good for one device and one counter"):
        for override in (Override("0" * 32, 10), Override(state["device_id"], 9)):
            with pytest.raises(UntrustedReleaseError, match="older"):
                stage.push(root, sign=signed_by(key, 9, override=override))
        stage.push(root, sign=signed_by(key, 9, override=Override(state["device_id"], 10)))
        assert answer(root) == "new" and json.loads((root / "trust.json").read_text())["counter"] == 10


def test_freeze_an_expired_signature(stage: Stage, root: Path, key: SigningKey) -> None:
    """A release of last year is offered as the newest."""
    late = shift_clock(400 * 86400.0)
    attack = signed_by(key, 11, expires_in_s=86400 * 30)
    found = refuse(stage, root, key, "freeze", lambda: stage.push(root, sign=attack, prelude=late), next_counter=12)
    assert "expired" in found.what


def test_fast_forward(stage: Stage, root: Path, key: SigningKey) -> None:
    """A stolen key has pushed the counter to its end: the owner rotates the key and sets the counter back."""
    with case("attack: fast-forward", "after a rotation signed by the owner honest releases follow again"):
        stolen = make_signer("stolen")
        rotate(stage, root, key, [key, stolen], version=2)
        stage.push(root, sign=signed_by(stolen, (1 << 53) - 1))
        with pytest.raises(UntrustedReleaseError, match="older"):
            stage.push(root, stage.old, sign=signed_by(key, 12))
        rotate(stage, root, key, [key], version=3, counter=12)
        stage.push(root, stage.old, sign=signed_by(key, 12))
        assert answer(root) == "old"
        with pytest.raises(UntrustedReleaseError):
            stage.push(root, sign=signed_by(stolen, 13))


def rotate(
    stage: Stage, root: Path, key: SigningKey, keys: list[SigningKey], *, version: int, counter: int | None = None
) -> None:
    state = json.loads((root / "trust.json").read_text())
    envelope = sign_keys(
        key, device_id=state["device_id"], version=version, keys=[entry.public for entry in keys], counter=counter
    )
    with client_of(stage, root) as client:
        client.call("lock", owner="test")
        client.call("rotate", envelope=envelope)


def test_key_compromise_with_rotation(stage: Stage, root: Path, key: SigningKey) -> None:
    new = make_signer("new")
    old_envelope_keys = [new]
    with case("attack: key compromise", "the lost key signs nothing any more: no release, no rotation, no way back"):
        rotate(stage, root, key, old_envelope_keys, version=2)
        stage.push(root, sign=signed_by(new, 11))
        for counter in (11, 12, 1000):
            with pytest.raises(UntrustedReleaseError):
                stage.push(root, stage.old, sign=signed_by(key, counter))
        with pytest.raises(EdgeawqError):
            rotate(stage, root, key, [key], version=3)
        with pytest.raises(EdgeawqError):  # the owner's own rotation, played again
            rotate(stage, root, new, [key], version=2)
        identity = (root / "previous").resolve().name
        with client_of(stage, root) as client:
            client.call("lock", owner="test")
            client.call("check", release=identity, timeout_s=60)
            with pytest.raises(UntrustedReleaseError):
                client.call("switch", release=identity)
        assert answer(root) == "new"


def test_pinning_anew_without_the_key(stage: Stage, root: Path, key: SigningKey) -> None:
    def attack() -> None:
        with client_of(stage, root) as client:
            client.call("lock", owner="attacker")
            client.call("pin", keys=[make_signer("attacker").public.to_json()])

    refuse(stage, root, key, "key compromise", attack, error=EdgeawqError)


def test_wrong_software_for_another_machine(stage: Stage, root: Path, key: SigningKey, tmp_path: Path) -> None:
    """A release of the same owner, rightly signed, for a device with another processor."""
    from edgeawq.deploy import push as push_module

    real = push_module.describe_release

    def attack() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                push_module, "describe_release", lambda **arguments: real(**{**arguments, "machine": "riscv64"})
            )
            stage.push(root, sign=signed_by(key, 11))

    refuse(stage, root, key, "wrong software", attack, error=DeviceUnfitError)


def test_wrong_software_that_does_not_answer(stage: Stage, root: Path, key: SigningKey, tmp_path: Path) -> None:
    bad = make_bundle(tmp_path / "bad", behave="crash")
    with case("attack: wrong software", CHECKED):
        with pytest.raises(EdgeawqError, match="health check"):
            stage.push(root, bad, sign=signed_by(key, 11))
        assert answer(root) == "old"
        assert json.loads((root / "trust.json").read_text())["counter"] == 10, "what never ran must not count"
        stage.push(root, sign=signed_by(key, 11))
        assert answer(root) == "new"


@pytest.mark.parametrize("what", ["description", "signature", "keys"])
def test_endless_data(stage: Stage, root: Path, key: SigningKey, what: str) -> None:
    """Bounded before it is read, or before anything of it is looked at."""
    with case("attack: endless data", "refused before it is read; the old release runs and answers"):
        wire = Wire(root)
        try:
            assert wire.ask("lock", owner="attacker")["ok"]
            if what == "description":
                answer_ = wire.ask("plan", size=1 << 50, length=1 << 50)
            elif what == "signature":
                answer_ = wire.plan({"format": "x"}, signature="x" * 40_000)
            else:
                answer_ = wire.ask("rotate", envelope="x" * 40_000)
            assert answer_["ok"] is False
        finally:
            wire.kill()
        assert answer(root) == "old"
        stage.push(root, sign=signed_by(key, 11))
        assert answer(root) == "new" and leftovers(root) == []


@pytest.mark.parametrize("name", ["trust.json", "trust.pinned"])
@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "flipped"])
def test_damaged_trust(stage: Stage, root: Path, key: SigningKey, name: str, damage: str) -> None:
    """A lost or damaged file must never mean that everybody is trusted."""
    with case("damage to trust.json", "nothing is accepted from strangers; the running release stays and answers"):
        path = root / name
        text = path.read_text()
        if damage == "gone":
            path.unlink()
        else:
            path.write_text({"empty": "", "garbage": "{]", "flipped": text[:5] + "#" + text[6:]}[damage])
        with pytest.raises(EdgeawqError):
            stage.push(root, sign=signed_by(make_signer("stranger"), 99))
        with pytest.raises(EdgeawqError):
            stage.push(root)
        assert answer(root) == "old"
        path.write_text(text)
        stage.push(root, sign=signed_by(key, 11))
        assert answer(root) == "new" and leftovers(root) == []
