"""What a device accepts. The attacks are those of The Update Framework's list, at the level of one device."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeawq.deploy.keys import SigningKey
from edgeawq.deploy.receiver import envelope as envelopes
from edgeawq.deploy.receiver import trust as trusts
from edgeawq.deploy.receiver.envelope import KEYS_TYPE, RELEASE_TYPE, encode_canonical, encode_pae, key_id
from edgeawq.deploy.receiver.refusal import Refusal
from edgeawq.deploy.receiver.trust import Trust
from edgeawq.deploy.signing import Override, sign_keys
from tests.deploy.signers import (
    NOW,
    change_envelope,
    make_signer,
    random_release,
    release_payload,
    seal,
    sign,
)

YEAR_S = 365.25 * 86_400


@pytest.fixture
def signer() -> SigningKey:
    return make_signer()


@pytest.fixture
def trust(tmp_path: Path, signer: SigningKey) -> Trust:
    """A device that trusts `signer`."""
    trust = Trust(str(tmp_path))
    trust.pin([signer.public.to_json()])
    return trust


def refused(code: str, call: Any, *arguments: Any) -> Refusal:
    """Call, and return the refusal that has to come."""
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert caught.value.code == code, caught.value.what
    assert caught.value.details["remedy"]
    return caught.value


def install(trust: Trust, signer: SigningKey, counter: int, **options: Any) -> str:
    """Verify and accept a fresh release; return its id."""
    digest, identity = random_release()
    verdict = trust.check_release(sign(signer, digest, counter=counter, **options), digest, NOW)
    trust.accept(verdict, identity)
    return identity


def device_id(trust: Trust) -> str:
    return str(trust.describe()["device_id"])


# ---------------------------------------------------------------- pinning


def test_without_keys_everything_is_accepted(tmp_path: Path, signer: SigningKey) -> None:
    trust = Trust(str(tmp_path / "root"))
    digest, identity = random_release()
    for envelope in (None, b"", b"nonsense", sign(signer, digest)):
        verdict = trust.check_release(envelope, digest, NOW)
        assert verdict["signed"] is False and verdict["key"] is None
        trust.accept(verdict, identity)
    assert trust.describe() == {
        "pinned": False,
        "device_id": None,
        "version": None,
        "keys": [],
        "counter": None,
        "counter_release": None,
        "error": None,
    }
    assert not (tmp_path / "root").exists()


def test_a_signed_release_is_accepted_and_raises_the_counter(trust: Trust, signer: SigningKey) -> None:
    digest, identity = random_release()
    verdict = trust.check_release(sign(signer, digest, counter=7, expires_in_s=60), digest, NOW)
    assert verdict == {
        "signed": True,
        "override": False,
        "key": signer.public.identity,
        "key_name": "default",
        "counter": 7,
        "expires": int(NOW) + 60,
    }
    assert trust.describe()["counter"] == 0  # verified is not yet accepted
    trust.accept(verdict, identity)
    assert (trust.describe()["counter"], trust.describe()["counter_release"]) == (7, identity)
    assert trust.check_release(sign(signer, digest, counter=7), digest, NOW)["signed"]  # the same one once more


def test_keys_are_pinned_once(trust: Trust, signer: SigningKey) -> None:
    before = trust.describe()
    refused("pinned", trust.pin, [make_signer().public.to_json()])
    refused("pinned", trust.pin, [signer.public.to_json()])
    assert trust.describe() == before and before["version"] == 1 and before["pinned"] is True


def test_each_device_has_its_own_id(tmp_path: Path, signer: SigningKey) -> None:
    names = set()
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        names.add(Trust(str(tmp_path / str(number))).pin([signer.public.to_json()])["device_id"])
    assert len(names) == 5 and all(len(name) == 32 for name in names)


def bad_keys() -> dict[str, Any]:
    good, other = make_signer("a").public.to_json(), make_signer("b").public.to_json()
    identity_point = (1).to_bytes(32, "little")
    return {
        "none": [],
        "not a list": good,
        "nine": [make_signer(f"k{number}").public.to_json() for number in range(9)],
        "twice": [good, {**good, "name": "again"}],
        "wrong id": [{**good, "id": other["id"]}],
        "no name": [{**good, "name": ""}],
        "terminal codes": [{**good, "name": "\x1b[31mred"}],
        "long name": [{**good, "name": "n" * 65}],
        "more fields": [{**good, "comment": "x"}],
        "fewer fields": [{"id": good["id"], "public": good["public"]}],
        "short": [{**good, "public": base64.b64encode(b"x" * 31).decode()}],
        "small order": [
            {"id": key_id(identity_point), "public": base64.b64encode(identity_point).decode(), "name": "zero"}
        ],
        "spaces": [{**good, "public": good["public"] + "\n"}],
        "text": ["key"],
        "null": None,
    }


@pytest.mark.parametrize("name", list(bad_keys()))
def test_what_is_no_key_is_not_pinned(tmp_path: Path, name: str) -> None:
    trust = Trust(str(tmp_path))
    refused("untrusted", trust.pin, bad_keys()[name])
    assert trust.load() is None and os.listdir(tmp_path) == []


# ---------------------------------------------------------------- the list of attacks


def test_arbitrary_installation(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    stranger = make_signer("default")  # the same name, another key
    assert "not signed" in refused("unsigned", trust.check_release, None, digest, NOW).what
    assert stranger.public.identity not in str(trust.describe())
    refused("untrusted", trust.check_release, sign(stranger, digest), digest, NOW)
    # A stranger's signature under the name of the trusted key: the key id is only a hint.
    envelope = json.loads(sign(stranger, digest))
    envelope["signatures"][0]["keyid"] = signer.public.identity
    assert "changed" in refused("untrusted", trust.check_release, json.dumps(envelope).encode(), digest, NOW).what
    # Eight strangers are no better than one; one trusted key among strangers is enough.
    payload = encode_canonical(release_payload(digest))
    strangers = [make_signer(str(number)) for number in range(8)]
    refused("untrusted", trust.check_release, seal(payload, strangers), digest, NOW)
    assert trust.check_release(seal(payload, [*strangers[:7], signer]), digest, NOW)["key"] == signer.public.identity


def test_rollback(trust: Trust, signer: SigningKey) -> None:
    newest = install(trust, signer, 10)
    digest, _ = random_release()
    old = sign(signer, digest, counter=9)
    refusal = refused("downgrade", trust.check_release, old, digest, NOW)
    assert newest in refusal.what and "--allow-downgrade" in refusal.details["remedy"]
    assert refusal.details["counter"] == 10 and refusal.details["device_id"] == device_id(trust)


def test_rollback_with_a_permission(trust: Trust, signer: SigningKey, tmp_path: Path) -> None:
    install(trust, signer, 10)
    digest, identity = random_release()
    permitted = sign(signer, digest, counter=9, override=Override(device_id(trust), 10))
    verdict = trust.check_release(permitted, digest, NOW)
    assert verdict["override"] is True
    trust.accept(verdict, identity)
    assert trust.describe()["counter"] == 10  # never lower: only this one release was permitted
    other, _ = random_release()
    refused("downgrade", trust.check_release, sign(signer, other, counter=9), other, NOW)
    # The permission is for this device, and as long as nothing newer was accepted.
    (tmp_path / "twin").mkdir()
    twin = Trust(str(tmp_path / "twin"))
    twin.pin([signer.public.to_json()])
    install(twin, signer, 10)
    assert "another device" in refused("downgrade", twin.check_release, permitted, digest, NOW).what
    install(trust, signer, 11)
    assert "counter 10" in refused("downgrade", trust.check_release, permitted, digest, NOW).what


def test_freeze(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    envelope = sign(signer, digest, expires_in_s=3600)
    assert trust.check_release(envelope, digest, NOW + 3600)["signed"]
    refusal = refused("expired", trust.check_release, envelope, digest, NOW + 3601)
    assert "2027-01-15 09:00:00 UTC" in refusal.what and "clock says 2027-01-15 09:00:01 UTC" in refusal.what


@pytest.mark.parametrize("years", [-60, -10, 10, 1e9])
def test_freeze_with_a_clock_that_is_wrong(trust: Trust, signer: SigningKey, years: float) -> None:
    digest, _ = random_release()
    now = NOW + years * YEAR_S
    assert trust.check_release(sign(signer, digest), digest, now)["signed"]  # what does not expire needs no clock
    envelope = sign(signer, digest, expires_in_s=86_400)
    if years < 0:
        assert trust.check_release(envelope, digest, now)["signed"]
    else:
        assert "clock says" in refused("expired", trust.check_release, envelope, digest, now).what


def test_fast_forward_and_the_way_back(trust: Trust, signer: SigningKey) -> None:
    thief, successor = signer, make_signer("successor")
    install(trust, thief, envelopes.MAX_COUNTER)
    digest, _ = random_release()
    refused("downgrade", trust.check_release, sign(signer, digest, counter=100), digest, NOW)
    beyond = sign(signer, digest, counter=envelopes.MAX_COUNTER + 1)
    refused("untrusted", trust.check_release, beyond, digest, NOW)
    trust.rotate(sign_keys(signer, device_id=device_id(trust), version=2, keys=[successor.public], counter=99).encode())
    assert (trust.describe()["counter"], trust.describe()["counter_release"]) == (99, None)
    assert trust.check_release(sign(successor, digest, counter=100), digest, NOW)["signed"]


def test_mix_and_match(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    other, _ = random_release()
    one, two = json.loads(sign(signer, digest, counter=5)), json.loads(sign(signer, other, counter=6))
    # One release with another's signature; one payload with another's signature.
    refused("untrusted", trust.check_release, sign(signer, other), digest, NOW)
    mixed = json.dumps({**one, "signatures": two["signatures"]}).encode()
    refused("untrusted", trust.check_release, mixed, digest, NOW)
    mixed = json.dumps({**one, "payload": two["payload"]}).encode()
    refused("untrusted", trust.check_release, mixed, other, NOW)
    # A signed list of keys is not a release, nor the other way round, even with its label changed.
    keys = sign_keys(signer, device_id=device_id(trust), version=2, keys=[signer.public]).encode()
    for envelope in (keys, change_envelope(keys, payloadType=RELEASE_TYPE)):
        refused("untrusted", trust.check_release, envelope, digest, NOW)
    for envelope in (sign(signer, digest), change_envelope(sign(signer, digest), payloadType=KEYS_TYPE)):
        refused("untrusted", trust.rotate, envelope)


def test_endless_data(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    good = sign(signer, digest)
    refused("untrusted", trust.check_release, good + b" " * (16 << 10), digest, NOW)
    signature = json.loads(good)["signatures"][0]
    refused("untrusted", trust.check_release, change_envelope(good, signatures=[signature] * 9), digest, NOW)
    refused("untrusted", trust.check_release, change_envelope(good, signatures=[]), digest, NOW)
    for deep in (b"[" * 10_000, b'{"a":' * 3_000, b"9" * 16_000, b'{"payloadType":' + b"9" * 16_000 + b"}"):
        refused("untrusted", trust.check_release, deep, digest, NOW)
    for deep in (b"[" * 10_000, b"9" * 10_000):
        refused("untrusted", trust.check_release, seal(deep, [signer]), digest, NOW)


def test_wrong_software(trust: Trust, signer: SigningKey) -> None:
    # Validly signed by the right key, but not for this: another kind of payload, another format, another program.
    digest, _ = random_release()
    for changes in ({"type": "keys"}, {"type": "firmware"}, {"format": 2}, {"format": True}):
        payload = encode_canonical(release_payload(digest, **changes))
        refused("untrusted", trust.check_release, seal(payload, [signer]), digest, NOW)
    payload = encode_canonical(release_payload(digest))
    for kind in ("application/vnd.in-toto+json", RELEASE_TYPE.upper(), RELEASE_TYPE + " ", ""):
        refused("untrusted", trust.check_release, seal(payload, [signer], kind), digest, NOW)


def test_key_compromise_with_rotation(trust: Trust, signer: SigningKey) -> None:
    stolen, successor, second = signer, make_signer("successor"), make_signer("second")
    install(trust, signer, 5)
    rotation = sign_keys(signer, device_id=device_id(trust), version=2, keys=[successor.public, second.public]).encode()
    described = trust.rotate(rotation)
    assert described["version"] == 2 and described["counter"] == 5
    assert [key["name"] for key in described["keys"]] == ["successor", "second"]
    digest, _ = random_release()
    refused("untrusted", trust.check_release, sign(stolen, digest, counter=6), digest, NOW)
    for trusted in (successor, second):
        assert trust.check_release(sign(trusted, digest, counter=6), digest, NOW)["key_name"] == trusted.public.name
    # The thief cannot rotate back, neither with the stolen key nor by sending the old list again.
    back = sign_keys(stolen, device_id=device_id(trust), version=3, keys=[stolen.public]).encode()
    refused("untrusted", trust.rotate, back)
    refused("untrusted", trust.rotate, rotation)


# ---------------------------------------------------------------- rotation


def test_rotation_is_for_one_device_and_one_version(trust: Trust, signer: SigningKey) -> None:
    install(trust, signer, 5)
    before = Path(trust.path).read_bytes()
    name = device_id(trust)
    for options in (
        {"device_id": "0" * 32, "version": 2},
        {"device_id": name, "version": 1},
        {"device_id": name, "version": 3},
        {"device_id": name, "version": -1},
        {"device_id": name, "version": True},
        {"device_id": name, "version": 2, "counter": -1},
        {"device_id": name, "version": 2, "counter": 1.5},
    ):
        refused("untrusted", trust.rotate, sign_keys(signer, keys=[make_signer().public], **options).encode())
    assert Path(trust.path).read_bytes() == before


@pytest.mark.parametrize("name", list(bad_keys()))
def test_rotation_never_leaves_a_device_without_keys(trust: Trust, signer: SigningKey, name: str) -> None:
    payload = {"type": "keys", "format": 1, "device_id": device_id(trust), "version": 2, "counter": None}
    data = encode_canonical({**payload, "keys": bad_keys()[name]})
    refused("untrusted", trust.rotate, seal(data, [signer], KEYS_TYPE))
    assert [key["id"] for key in trust.describe()["keys"]] == [signer.public.identity]


def test_rotation_needs_pinned_keys(tmp_path: Path, signer: SigningKey) -> None:
    envelope = sign_keys(signer, device_id="0" * 32, version=2, keys=[signer.public]).encode()
    refused("unpinned", Trust(str(tmp_path)).rotate, envelope)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- between verifying and accepting; going back


def test_what_was_verified_under_other_keys_is_not_accepted(tmp_path: Path, signer: SigningKey) -> None:
    trust = Trust(str(tmp_path))
    digest, identity = random_release()
    unsigned = trust.check_release(None, digest, NOW)
    trust.pin([signer.public.to_json()])
    refused("untrusted", trust.accept, unsigned, identity)
    verdict = trust.check_release(sign(signer, digest), digest, NOW)
    trust.rotate(sign_keys(signer, device_id=device_id(trust), version=2, keys=[make_signer().public]).encode())
    refused("untrusted", trust.accept, verdict, identity)
    assert trust.describe()["counter"] == 0


def test_what_was_verified_before_a_newer_one_is_not_accepted(trust: Trust, signer: SigningKey) -> None:
    digest, identity = random_release()
    verdict = trust.check_release(sign(signer, digest, counter=5), digest, NOW)
    install(trust, signer, 6)
    refused("downgrade", trust.accept, verdict, identity)


def test_going_back_needs_a_key_that_is_still_trusted(trust: Trust, signer: SigningKey, tmp_path: Path) -> None:
    digest, identity = random_release()
    verdict = trust.check_release(sign(signer, digest), digest, NOW)
    install(trust, signer, 9)
    trust.accept_recorded(verdict, identity)  # it is older than the newest, and that is no matter
    assert trust.describe()["counter"] == 9
    trust.accept_recorded({**verdict, "counter": 10}, identity)
    assert (trust.describe()["counter"], trust.describe()["counter_release"]) == (10, identity)
    for counter in (None, "11", -1, 2**60, True, [1]):
        trust.accept_recorded({**verdict, "counter": counter}, identity)
    assert trust.describe()["counter"] == 10
    for recorded in (None, {}, "x", {"key": None}, {"key": make_signer().public.identity}, {"key": [1]}):
        refused("untrusted", trust.accept_recorded, recorded, identity)
    trust.rotate(sign_keys(signer, device_id=device_id(trust), version=2, keys=[make_signer().public]).encode())
    assert "no longer trusted" in refused("untrusted", trust.accept_recorded, verdict, identity).what
    Trust(str(tmp_path / "unpinned")).accept_recorded(None, identity)
    os.unlink(trust.path)
    refused("trust", trust.accept_recorded, verdict, identity)


# ---------------------------------------------------------------- trust.json


def damage(path: Path) -> dict[str, bytes | None]:
    """Ways in which a disk or a person can spoil the file."""
    data = path.read_bytes()
    state = json.loads(data)
    changed = {
        "an id of another device's form": {"device_id": "x"},
        "no keys": {"keys": []},
        "another format": {"format": 2},
        "a counter below zero": {"counter": -1},
        "a counter that is a word": {"counter": "5"},
        "a version that is none": {"version": None},
        "a release that is none": {"counter_release": "../x"},
        "a key that is none": {"keys": [{**state["keys"][0], "public": "AAAA"}]},
    }
    return {
        "gone": None,
        "empty": b"",
        "halved": data[: len(data) // 2],
        "zeros": bytes(len(data)),
        "a list": b"[]",
        "too long": data + b" " * (64 << 10),
        "deep": b"[" * 20_000,
        **{name: json.dumps({**state, **change}).encode() for name, change in changed.items()},
    }


DAMAGES = [
    "gone", "empty", "halved", "zeros", "a list", "too long", "deep", "an id of another device's form", "no keys",
    "another format", "a counter below zero", "a counter that is a word", "a version that is none",
    "a release that is none", "a key that is none",
]  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_lost_file_accepts_nothing(trust: Trust, signer: SigningKey, name: str) -> None:
    digest, identity = random_release()
    envelope = sign(signer, digest)
    verdict = trust.check_release(envelope, digest, NOW)
    path = Path(trust.path)
    spoiled = damage(path)
    assert sorted(spoiled) == sorted(DAMAGES)
    data = spoiled[name]
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    for call in (
        lambda: trust.check_release(envelope, digest, NOW),
        lambda: trust.check_release(None, digest, NOW),
        lambda: trust.accept(verdict, identity),
        lambda: trust.pin([signer.public.to_json()]),
        lambda: trust.rotate(b""),
        lambda: trust.accept_recorded(verdict, identity),
    ):
        refusal = refused("trust", call)
        assert "trust.json" in refusal.what and "edgeawq key trust" in refusal.details["remedy"]
    described = trust.describe()
    assert described["pinned"] is True and "trust.json" in described["error"] and described["keys"] == []


def test_a_link_in_place_of_the_file_is_not_followed(trust: Trust, signer: SigningKey, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    Path(trust.path).rename(elsewhere)
    Path(trust.path).symlink_to(elsewhere)
    refused("trust", trust.load)
    Path(trust.path).unlink()
    Path(trust.path).mkdir()
    refused("trust", trust.load)
    os.rmdir(trust.path)
    os.mkfifo(trust.path)
    refused("trust", trust.load)


@pytest.mark.parametrize("broken", [1, 2])
def test_a_full_disk_leaves_the_keys_as_they_were(
    tmp_path: Path, signer: SigningKey, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    trust = Trust(str(tmp_path))
    real, calls = trusts.write_file, iter(range(1, 100))

    def write(path: str, data: bytes) -> None:
        if next(calls) == broken:
            raise OSError(28, "No space left on device")
        real(path, data)

    def fail(path: str, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(trusts, "write_file", write)
    with pytest.raises(OSError, match="No space"):
        trust.pin([signer.public.to_json()])
    assert trust.describe()["pinned"] is (broken == 2)  # trust.json comes first: no marker without keys
    monkeypatch.setattr(trusts, "write_file", real)
    if broken == 1:
        trust.pin([signer.public.to_json()])
    digest, identity = random_release()
    verdict = trust.check_release(sign(signer, digest, counter=7), digest, NOW)
    monkeypatch.setattr(trusts, "write_file", fail)
    with pytest.raises(OSError, match="Read-only"):
        trust.accept(verdict, identity)
    assert trust.describe()["counter"] == 0 and trust.check_release(sign(signer, digest), digest, NOW)["signed"]


def test_the_marker_is_written_again_when_it_was_lost(trust: Trust, signer: SigningKey) -> None:
    os.unlink(trust.marker)  # as after a power cut between the two files of `pin`
    assert trust.describe()["pinned"] is True
    install(trust, signer, 5)
    assert os.path.exists(trust.marker)


# ---------------------------------------------------------------- envelopes


def test_the_encoding_that_is_signed_is_that_of_dsse() -> None:
    # protocol.md of secure-systems-lab/dsse 1.0.2, "Test Vectors"
    assert encode_pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_envelopes_of_other_writers_are_read(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    envelope = json.loads(sign(signer, digest))
    pretty = json.dumps({"extra": [1], **envelope}, indent=3)
    assert trust.check_release(pretty.encode(), digest, NOW)["signed"]
    assert trust.check_release(pretty, digest, NOW)["signed"]  # as text


@pytest.mark.parametrize(
    "changes",
    [
        {"counter": -1}, {"counter": 5.0}, {"counter": "5"}, {"counter": True}, {"counter": None}, {"counter": 1 << 53},
        {"signed_at": -1}, {"signed_at": None}, {"signed_at": 10**12}, {"expires": 1.5}, {"expires": "never"},
        {"expires": -1}, {"name": None}, {"name": "n" * 201}, {"name": "\x1b[2J"}, {"release_sha256": "A" * 64},
        {"release_sha256": None}, {"override": {}}, {"override": []}, {"override": {"device_id": 1, "counter": 1}},
        {"override": {"device_id": "0" * 32, "counter": 10, "more": 1}}, {"more": 1}, {"name": "drop"},
        {"expires": "drop"}, {"override": "drop"},
    ],
)  # fmt: skip
def test_every_field_of_a_signed_release_is_checked(trust: Trust, signer: SigningKey, changes: dict[str, Any]) -> None:
    digest, _ = random_release()
    payload = encode_canonical(release_payload(digest, **changes))
    refused("untrusted", trust.check_release, seal(payload, [signer]), digest, NOW)


def test_only_canonical_json_is_signed_text(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    payload = release_payload(digest)
    canonical = encode_canonical(payload)
    assert trust.check_release(seal(canonical, [signer]), digest, NOW)["signed"]
    twice = canonical[:-1] + b',"counter":6}'
    for other in (
        json.dumps(payload).encode(),
        canonical + b"\n",
        twice,
        canonical.replace(b'"tiny"', b'"\\u0074iny"'),
    ):
        refused("untrusted", trust.check_release, seal(other, [signer]), digest, NOW)


def test_base64_has_one_form(trust: Trust, signer: SigningKey) -> None:
    digest, _ = random_release()
    good = json.loads(sign(signer, digest))
    signature = good["signatures"][0]["sig"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    unused = signature[:85] + alphabet[alphabet.index(signature[85]) + 1] + "=="  # the last four bits mean nothing
    assert base64.b64decode(unused) == base64.b64decode(signature)
    for other in (
        unused,
        signature + "=",
        signature[:-2],
        signature + "\n",
        signature.replace("==", ""),
        "é" * 88,
        "",
        None,
        5,
    ):
        changed = {"keyid": signer.public.identity, "sig": other}
        refused("untrusted", trust.check_release, json.dumps({**good, "signatures": [changed]}).encode(), digest, NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=12,
)
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@fuzz
@given(envelope=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()) | json_values)
def test_nothing_but_a_refusal_comes_out_of_garbage(trust: Trust, envelope: Any) -> None:
    before = Path(trust.path).read_bytes()
    digest = "0" * 64
    refused("unsigned" if envelope is None else "untrusted", trust.check_release, envelope, digest, NOW)
    refused("untrusted", trust.rotate, envelope)
    refused("pinned", trust.pin, envelope)
    assert Path(trust.path).read_bytes() == before


@fuzz
@given(
    field=st.sampled_from(["payloadType", "payload", "signatures", "keyid", "sig"]),
    value=json_values,
)
def test_nothing_but_a_refusal_comes_out_of_a_spoiled_envelope(
    trust: Trust, signer: SigningKey, field: str, value: Any
) -> None:
    digest, _ = random_release()
    envelope = json.loads(sign(signer, digest))
    target = envelope["signatures"][0] if field in ("keyid", "sig") else envelope
    target[field] = value
    refused("untrusted", trust.check_release, json.dumps(envelope).encode(), digest, NOW)


@fuzz
@given(field=st.sampled_from([*release_payload("0" * 64), "new"]), value=json_values)
def test_a_signed_payload_of_any_shape_is_a_verdict_or_a_refusal(
    trust: Trust, signer: SigningKey, field: str, value: Any
) -> None:
    digest, _ = random_release()
    data = encode_canonical({**release_payload(digest), field: value})
    try:
        verdict = trust.check_release(seal(data, [signer]), digest, NOW)
    except Refusal:
        return
    assert verdict["signed"] and field in ("name", "counter", "signed_at", "expires", "override", "format")


@fuzz
@given(
    field=st.sampled_from(["type", "format", "device_id", "version", "keys", "counter", "new"]),
    value=json_values,
)
def test_a_signed_rotation_of_any_shape_keeps_the_device_usable(
    tmp_path: Path, signer: SigningKey, field: str, value: Any
) -> None:
    trust = Trust(str(tmp_path))
    if not os.path.exists(trust.path):
        trust.pin([signer.public.to_json()])
    described = trust.describe()
    payload = {"type": "keys", "format": 1, "device_id": described["device_id"], "version": described["version"] + 1}
    payload = {**payload, "keys": [signer.public.to_json()], "counter": None, field: value}
    try:
        trust.rotate(seal(encode_canonical(payload), [signer], KEYS_TYPE))
    except Refusal:
        assert trust.describe() == described
    assert [key["id"] for key in trust.describe()["keys"]] == [signer.public.identity]


@fuzz
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_in_trust_json_never_opens_the_device(
    trust: Trust, signer: SigningKey, position: int, bit: int
) -> None:
    path = Path(trust.path)
    good = path.read_bytes()
    data = bytearray(good)
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(bytes(data))
    digest, _ = random_release()
    try:
        with pytest.raises(Refusal):
            trust.check_release(None, digest, NOW)
        with pytest.raises(Refusal):
            trust.check_release(sign(make_signer(), digest), digest, NOW)
    finally:
        path.write_bytes(good)
