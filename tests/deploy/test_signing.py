"""Envelopes as the host makes them, and the counter that orders releases."""

from __future__ import annotations

import base64
import json
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.deploy.device_trust import DeviceTrust, parse_device_trust, sign_for_device
from edgeawq.deploy.keys import create_key, load_signing_key
from edgeawq.deploy.receiver.envelope import KEYS_TYPE, MAX_COUNTER, RELEASE_TYPE, encode_pae
from edgeawq.deploy.receiver.limits import MAX_SIGNATURE_BYTES
from edgeawq.deploy.receiver.refusal import Refusal
from edgeawq.deploy.receiver.trust import Trust
from edgeawq.deploy.signing import (
    Override,
    give_counter,
    parse_lifetime,
    read_last_counter,
    sign_keys,
    sign_release,
)
from edgeawq.errors import DeployError, UsageError
from tests.deploy.signers import NOW, make_signer, random_release

RELEASES = [f"{number:016x}" for number in range(10)]


def never(question: str) -> str | None:
    raise AssertionError(f"asked: {question}")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "keys"


# ---------------------------------------------------------------- envelopes


def test_what_is_signed_for_a_release() -> None:
    signer = make_signer()
    text = sign_release(signer, release_sha256="ab" * 32, name="tiny ✓", counter=7, expires_in_s=90, now=1000.9)
    envelope = json.loads(text)
    payload = base64.b64decode(envelope["payload"])
    assert envelope["payloadType"] == RELEASE_TYPE and [*envelope] == sorted(envelope)
    assert json.loads(payload) == {
        "type": "release",
        "format": 1,
        "release_sha256": "ab" * 32,
        "name": "tiny ✓",
        "counter": 7,
        "signed_at": 1000,
        "expires": 1090,
        "override": None,
    }
    assert payload.isascii() and b" " not in payload.replace(b"tiny ", b"")
    signature = envelope["signatures"][0]
    assert signature["keyid"] == signer.public.identity
    public = signer.private.public_key()
    public.verify(base64.b64decode(signature["sig"]), encode_pae(RELEASE_TYPE, payload))


def test_the_largest_envelope_fits_what_a_device_reads() -> None:
    signer = make_signer("n" * 63)
    keys = [make_signer("n" * 63).public for _ in range(8)]
    text = sign_keys(signer, device_id="f" * 32, version=2**31, keys=keys, counter=MAX_COUNTER)
    assert len(text) <= MAX_SIGNATURE_BYTES and json.loads(text)["payloadType"] == KEYS_TYPE
    override = Override("f" * 32, MAX_COUNTER)
    text = sign_release(signer, release_sha256="f" * 64, name="\U0001f600" * 50, counter=MAX_COUNTER, override=override)
    assert len(text) <= MAX_SIGNATURE_BYTES
    for wrong in ([], [*keys, make_signer().public]):
        with pytest.raises(UsageError, match="1 to 8 keys"):
            sign_keys(signer, device_id="f" * 32, version=2, keys=wrong)


# ---------------------------------------------------------------- the counter


def test_a_release_keeps_its_number(store: Path) -> None:
    assert read_last_counter(store) == 0
    first = give_counter(RELEASES[0], folder=store, now=1000.0)
    second = give_counter(RELEASES[1], folder=store, now=2000.0)
    assert (first, second) == (1000, 2000)
    assert give_counter(RELEASES[0], folder=store, now=3000.0) == 1000
    assert read_last_counter(store) == 2000
    assert stat.S_IMODE((store / "releases.json").stat().st_mode) == 0o600


@given(st.lists(st.tuples(st.sampled_from(RELEASES), st.floats(-4e8, 4e9)), max_size=30))
def test_numbers_grow_whatever_the_clock_says(tmp_path_factory: pytest.TempPathFactory, pushes: list) -> None:
    store = tmp_path_factory.mktemp("keys")
    given_before: dict[str, int] = {}
    for release, now in pushes:
        counter = give_counter(release, folder=store, now=now)
        if release in given_before:
            assert counter == given_before[release]
        else:
            assert counter > max([0, *given_before.values()]) and counter >= int(now)
            given_before[release] = counter


def test_several_pushes_at_once_get_different_numbers(store: Path) -> None:
    def work(start: int) -> None:
        for number in range(20):
            give_counter(f"{start + number:016x}", folder=store, now=1000.0)

    threads = [threading.Thread(target=work, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = json.loads((store / "releases.json").read_text())
    assert sorted(ledger["releases"].values()) == list(range(1000, 1080)) and ledger["last"] == 1079


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "nonsense", '{"last": 5}', '{"last": 5, "releases": []}', '{"last": "5", "releases": {}}',
        '{"last": 5, "releases": {"x": 1}}', '{"last": 5, "releases": {"0123456789abcdef": 6}}', "[" * 10_000,
        '{"last": 5, "releases": {"0123456789abcdef": null}}', '{"last": -1, "releases": {}}',
        '{"last": 99999999999999999999, "releases": {}}', '{"last": 5, "releases": {"0123456789abcdef"',
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_not_forgotten_silently(store: Path, text: str) -> None:
    store.mkdir()
    (store / "releases.json").write_text(text)
    with pytest.raises(DeployError, match="damaged") as caught:
        give_counter(RELEASES[0], folder=store)
    assert "backup" in caught.value.remedy and (store / "releases.json").read_text() == text


def test_a_clock_beyond_all_measure_is_an_error(store: Path) -> None:
    with pytest.raises(DeployError, match="clock"):
        give_counter(RELEASES[0], folder=store, now=float(MAX_COUNTER + 1))
    assert read_last_counter(store) == 0


@pytest.mark.parametrize(("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("2w", 1_209_600), ("5s", 5)])
def test_lifetimes(text: str, seconds: int) -> None:
    assert parse_lifetime(text) == seconds
    for wrong in ("", "0d", "-1d", "5", "d", "1.5h", "5 d", "1y", "9999999d", "٣d"):
        with pytest.raises(UsageError, match="not a duration"):
            parse_lifetime(wrong)


# ---------------------------------------------------------------- for one device


def trust_of(device: Trust) -> DeviceTrust:
    return parse_device_trust(json.loads(json.dumps(device.describe())), "device")


def test_a_push_to_a_device_with_keys(store: Path, tmp_path: Path) -> None:
    """Sign, verify, go back: the host's half against the device's."""
    device = Trust(str(tmp_path))
    releases = [random_release() for _ in range(3)]

    def envelope(index: int, **options: object) -> str:
        digest, identity = releases[index]
        settings = {"name": "tiny", "ask": never, "folder": store, **options}
        return sign_for_device(trust_of(device), release_id=identity, release_sha256=digest, **settings)

    def push(index: int, **options: object) -> None:
        verdict = device.check_release(envelope(index, **options), releases[index][0], NOW)
        device.accept(verdict, releases[index][1])

    assert envelope(0) == "" and not store.exists()  # nothing pinned: no key is needed
    key = create_key("default", folder=store)
    device.pin([key.to_json()])
    push(0)
    push(1)
    push(1)
    newest = device.describe()["counter"]
    with pytest.raises(Refusal, match="older"):
        push(0)
    push(0, allow_downgrade=True)
    assert device.describe()["counter"] == newest
    push(1)  # the newest needs no permission, though an older one runs
    push(2, allow_downgrade=True)  # nor does a permission that is not needed do harm
    assert device.describe()["counter"] > newest
    with pytest.raises(Refusal, match="expired"):
        device.check_release(envelope(2, expires_in_s=60), releases[2][0], 4e9)


def test_the_key_must_be_one_that_the_device_trusts(store: Path, tmp_path: Path) -> None:
    device = Trust(str(tmp_path))
    create_key("default", folder=store)
    work = create_key("work", folder=store)
    device.pin([work.to_json()])
    digest, identity = random_release()
    sign = {"release_id": identity, "release_sha256": digest, "name": "tiny", "ask": never, "folder": store}
    verdict = device.check_release(sign_for_device(trust_of(device), **sign), digest, NOW)
    assert verdict["key_name"] == "work"
    with pytest.raises(UsageError, match="does not trust the key 'default'"):
        sign_for_device(trust_of(device), key_name="default", **sign)


def test_a_rotation_that_the_host_signs_is_understood(store: Path, tmp_path: Path) -> None:
    device = Trust(str(tmp_path))
    old, new = create_key("old", folder=store), create_key("new", folder=store)
    device.pin([old.to_json()])
    trust = trust_of(device)
    signer = load_signing_key("old", never, store)
    device.rotate(sign_keys(signer, device_id=trust.device_id, version=trust.version + 1, keys=[new, old]))
    assert trust_of(device).key_ids == [new.identity, old.identity] and trust_of(device).version == 2


@pytest.mark.parametrize("answer", [None, {}, [], {"pinned": True}, {"keys": [1]}, "x"])
def test_a_device_that_says_nonsense_about_its_keys(answer: object) -> None:
    with pytest.raises(DeployError, match="not understood"):
        parse_device_trust(answer, "device")


@given(
    st.fixed_dictionaries(
        {
            "pinned": st.booleans(),
            "keys": st.none() | st.lists(st.dictionaries(st.sampled_from(["id", "name"]), st.text() | st.integers())),
            **{
                name: st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
                for name in ("device_id", "version", "counter", "counter_release", "error")
            },
        }
    )
)
def test_whatever_a_device_says_is_understood_or_an_error(answer: dict) -> None:
    try:
        trust = parse_device_trust(answer, "device")
    except DeployError as error:
        assert error.what.isprintable()
        return
    assert len(trust.keys) <= 8 and trust.names.isprintable() and json.dumps(trust.to_json())


def test_a_device_whose_file_is_damaged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_text("{")
    with pytest.raises(DeployError, match=r"trust\.json is damaged") as caught:
        trust_of(Trust(str(tmp_path)))
    assert "edgeawq key trust" in caught.value.remedy
