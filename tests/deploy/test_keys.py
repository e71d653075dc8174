"""The key store on the host."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.deploy.keys import (
    choose_signing_key,
    create_key,
    find_key,
    find_key_folder,
    import_public_key,
    list_keys,
    load_signing_key,
    lock_store,
    parse_public_line,
)
from edgeawq.errors import DeployError, EdgeawqError, UsageError
from tests.deploy.signers import make_signer


def never(question: str) -> str | None:
    raise AssertionError(f"asked: {question}")


@pytest.fixture(autouse=True)
def store(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of this test."""
    for name in ("EDGEAWQ_KEYS", "EDGEAWQ_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return isolated_home / ".config" / "edgeawq" / "keys"


def test_where_the_store_is(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_key_folder() == store
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert find_key_folder() == Path.home() / ".config" / "edgeawq" / "keys"
    monkeypatch.setenv("EDGEAWQ_KEYS", str(tmp_path / "else"))
    assert find_key_folder() == tmp_path / "else"


def test_a_new_key_signs_and_is_for_its_owner_only(store: Path) -> None:
    old = os.umask(0)
    try:
        key = create_key("default")
    finally:
        os.umask(old)
    assert stat.S_IMODE((store / "default.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert (store / "default.pub").read_text() == f"{key.line}\n"
    assert b"BEGIN PRIVATE KEY" in (store / "default.key").read_bytes()
    loaded = load_signing_key("default", never)
    assert loaded.public == key == find_key("default") and "private=<" not in repr(loaded)
    Ed25519PublicKey.from_public_bytes(key.public).verify(loaded.sign(b"message"), b"message")
    assert len(key.identity) == 16 and key.to_json()["id"] == key.identity
    assert sorted(os.listdir(store)) == [".lock", "default.key", "default.pub"]


def test_nothing_is_ever_replaced(store: Path) -> None:
    key = create_key("default")
    before = (store / "default.key").read_bytes()
    with pytest.raises(UsageError, match="already"):
        create_key("default")
    (store / "default.pub").unlink()
    with pytest.raises(UsageError, match="already"):
        create_key("default")
    assert (store / "default.key").read_bytes() == before
    with pytest.raises(UsageError, match="another key"):
        import_public_key(make_signer("default").public.line)
    (store / "default.pub").write_text(f"{key.line}\n")
    with pytest.raises(UsageError, match="another key"):
        import_public_key(make_signer("default").public.line)
    assert import_public_key(key.line) == key  # the same one is no conflict


def test_two_processes_that_make_the_same_key(store: Path) -> None:
    results: list[object] = []

    def make() -> None:
        try:
            results.append(create_key("default").public)
        except UsageError as error:
            results.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [result for result in results if isinstance(result, bytes)]
    assert len(made) == 1 and load_signing_key("default", never).public.public == made[0]


def test_a_passphrase_is_asked_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_key("work", passphrase="correct horse ✓")
    assert b"ENCRYPTED" in (store / "work.key").read_bytes()
    questions: list[str] = []

    def answer(text: str | None):  # noqa: ANN202
        return lambda question: questions.append(question) or text

    assert load_signing_key("work", answer("correct horse ✓")).public == key
    assert "'work'" in questions[0]
    with pytest.raises(DeployError, match="passphrase is wrong"):
        load_signing_key("work", answer("battery staple"))
    for nothing in (None, ""):
        with pytest.raises(DeployError, match="has a passphrase"):
            load_signing_key("work", answer(nothing))
    monkeypatch.setenv("EDGEAWQ_KEY_PASSPHRASE", "correct horse ✓")
    assert load_signing_key("work", never).public == key
    create_key("plain")
    assert load_signing_key("plain", never)  # a passphrase in the environment is no trouble for a key without


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666, 0o610])
def test_a_private_key_that_others_can_reach_is_refused(store: Path, mode: int) -> None:
    create_key("default")
    (store / "default.key").chmod(mode)
    with pytest.raises(DeployError, match=f"mode {mode:04o}") as caught:
        load_signing_key("default", never)
    assert "chmod 600" in caught.value.remedy


def test_keys_that_cannot_be_used(store: Path) -> None:
    create_key("default")
    create_key("other")
    with pytest.raises(UsageError, match="no key 'none'") as caught:
        load_signing_key("none", never)
    assert "default, other" in caught.value.remedy
    import_public_key(make_signer("friend").public.line)
    with pytest.raises(UsageError, match="private half"):
        load_signing_key("friend", never)
    (store / "other.key").write_bytes((store / "default.key").read_bytes())
    with pytest.raises(DeployError, match="do not belong together"):
        load_signing_key("other", never)
    pem = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (store / "other.key").write_bytes(pem)
    with pytest.raises(DeployError, match="not an ed25519 key"):
        load_signing_key("other", never)
    for data in (b"", b"nonsense", (store / "default.key").read_bytes()[:60]):
        (store / "other.key").write_bytes(data)
        with pytest.raises(DeployError, match="damaged"):
            load_signing_key("other", never)


def test_lists_what_is_there(store: Path) -> None:
    assert list_keys() == []
    mine = create_key("mine")
    friend = import_public_key(make_signer("friend").public.line + "\n")
    renamed = import_public_key(make_signer("friend").public.line, name="friend2")
    assert list_keys() == [friend, renamed, mine]
    assert [key.has_private for key in list_keys()] == [False, False, True]
    assert renamed.line.endswith(" friend2")
    (store / "bad.pub").write_text("ssh-ed25519 AAAA me\n")
    with pytest.raises(UsageError, match="bad.pub is not a public key"):
        list_keys()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "-x", "a b", "n" * 64, "nul\0"])
def test_names_stay_in_the_store(store: Path, name: str) -> None:
    for call in (create_key, find_key, lambda text: import_public_key(make_signer().public.line, name=text or "/")):
        with pytest.raises(UsageError, match="cannot be the name of a key"):
            call(name)
    assert not store.exists() or sorted(os.listdir(store)) in ([], [".lock"])


def test_small_order_keys_are_not_imported() -> None:
    with pytest.raises(UsageError):
        import_public_key("edgeawq-ed25519 AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= zero")


@given(st.text(max_size=120) | st.binary(max_size=60).map(lambda data: f"edgeawq-ed25519 {data.hex()} name"))
def test_a_line_is_a_key_or_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="the text is not a public key"):
        parse_public_line(text, source="the text")


def test_chooses_the_key_that_a_device_trusts(store: Path) -> None:
    with pytest.raises(DeployError, match="none of them is here"):
        choose_signing_key(["0" * 16])
    alpha, default, friend = create_key("alpha"), create_key("default"), make_signer("friend").public
    import_public_key(friend.line)
    everyone = [alpha.identity, default.identity, friend.identity]
    assert choose_signing_key(everyone) == "default"
    assert choose_signing_key([alpha.identity, friend.identity]) == "alpha"
    assert choose_signing_key(everyone, wanted="alpha") == "alpha"
    with pytest.raises(DeployError, match="none of them is here"):
        choose_signing_key([friend.identity])
    with pytest.raises(UsageError, match="does not trust the key 'alpha'"):
        choose_signing_key([default.identity], wanted="alpha")
    with pytest.raises(UsageError, match="no key 'beta'"):
        choose_signing_key(everyone, wanted="beta")


def test_a_store_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="cannot be changed") as caught:
        create_key("default", folder=tmp_path / "file" / "keys")
    assert "EDGEAWQ_KEYS" in caught.value.remedy
    with pytest.raises(DeployError, match="No space left"), lock_store(tmp_path / "keys"):
        raise OSError(28, "No space left on device")
    with pytest.raises(EdgeawqError, match="mine"), lock_store(tmp_path / "keys"):
        raise EdgeawqError("mine")
