"""`edgeawq key` and `edgeawq log`, with this machine as the device and its real receiver."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgeawq.cli.main import cli
from edgeawq.deploy import device_trust
from edgeawq.deploy.device_trust import make_release_signer
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.keys import load_signing_key
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.push import PushOptions, PushReport, push
from edgeawq.deploy.receiver.trust import Trust
from edgeawq.errors import DeployError, EdgeawqError, UntrustedReleaseError, UsageError
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.signers import make_signer

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the user's own is read or written."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEAWQ_INVENTORY", str(tmp_path / "edgeawq.toml"))
    monkeypatch.setenv("EDGEAWQ_LOCAL_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("EDGEAWQ_KEYS", "EDGEAWQ_KEY_PASSPHRASE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("edgeawq.deploy.ssh_prompt.ask_at_terminal", lambda question: None)
    return tmp_path


@pytest.fixture
def run() -> Run:
    """Call the command line in this process; return its standard output, or raise its error."""

    def call(*arguments: str, text: str | bytes = "") -> str:
        result = CliRunner().invoke(cli, arguments, input=text, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return call


@pytest.fixture
def push_release(folders: Path) -> Callable[..., PushReport]:
    """Push a fresh or known bundle to this machine through the real receiver."""
    site = make_site(folders / "site")
    device = Device(name="localhost", transport="local", root=str(folders / "root"), python=sys.executable)

    def call(name: str, **options: Any) -> PushReport:
        bundle = folders / f"{name}.edgeawq"
        if not bundle.exists():
            make_bundle(bundle, marker=name)
        sign = make_release_signer("localhost", ask=lambda question: None, **options)
        keep = PushOptions(keep=100)
        return push(LocalTransport(), device, bundle, keep, site=lambda *_: site, sign=sign)

    return call


def trusted(folders: Path) -> dict[str, Any]:
    """What the device has pinned."""
    return Trust(str(folders / "root")).describe()


# ---------------------------------------------------------------- the key store


def test_init_list_show(run: Run, folders: Path) -> None:
    assert "edgeawq key init" in run("key", "list")
    line = run("key", "init")
    assert line.startswith("edgeawq-ed25519 ") and line.endswith(" default\n")
    assert (folders / "config/edgeawq/keys/default.pub").read_text() == line == run("key", "show")
    made = json.loads(run("key", "init", "work", "--json"))
    assert run("key", "show", "work").split()[1] == made["public"]
    listed = json.loads(run("key", "list", "--json"))
    assert [(key["name"], key["has_private"]) for key in listed] == [("default", True), ("work", True)]
    assert made["id"] in run("key", "list")
    with pytest.raises(UsageError, match="already"):
        run("key", "init")
    with pytest.raises(UsageError, match="no key 'nobody'"):
        run("key", "show", "nobody")


def test_a_passphrase_from_the_environment_or_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAWQ_KEY_PASSPHRASE", "from the environment")
    run("key", "init", "one")
    run("key", "init", "bare", "--no-passphrase")
    monkeypatch.delenv("EDGEAWQ_KEY_PASSPHRASE")
    answers = iter(["typed", "typed", "typed", "mistyped", ""])
    monkeypatch.setattr("edgeawq.deploy.ssh_prompt.ask_at_terminal", lambda question: next(answers))
    run("key", "init", "two")
    with pytest.raises(UsageError, match="differ"):
        run("key", "init", "three")
    run("key", "init", "four")
    assert load_signing_key("one", lambda question: "from the environment")
    assert load_signing_key("two", lambda question: "typed")
    for bare in ("bare", "four"):
        assert load_signing_key(bare, lambda question: None)


def test_import_public(run: Run, folders: Path) -> None:
    friend = make_signer("friend").public
    (folders / "friend.pub").write_text(friend.line + "\n")
    assert run("key", "import-public", str(folders / "friend.pub")) == f"friend {friend.identity}\n"
    assert run("key", "import-public", "-", "--name", "alice", text=friend.line) == f"alice {friend.identity}\n"
    listed = json.loads(run("key", "list", "--json"))
    assert [(key["name"], key["has_private"]) for key in listed] == [("alice", False), ("friend", False)]
    for junk in (b"\xff\xfe", b"", b"ssh-ed25519 AAAA me", b"x" * 100_000):
        with pytest.raises(UsageError, match="not a public key"):
            run("key", "import-public", "-", text=junk)


@pytest.mark.parametrize(
    "command", ["key", "key init", "key list", "key show", "key import-public", "key trust", "key rotate", "log"]
)
def test_help_has_an_example(run: Run, command: str) -> None:
    assert "Example:" in run(*command.split(), "--help")


# ---------------------------------------------------------------- with a device


def test_a_device_with_keys_takes_only_what_is_signed(
    run: Run, push_release: Callable[..., PushReport], folders: Path
) -> None:
    unsigned = push_release("one")
    assert unsigned.trust["signed"] is False
    run("key", "init")
    assert "accepts releases signed with default" in run("key", "trust", "localhost")
    (folders / "config/edgeawq/keys").rename(folders / "hidden")
    with pytest.raises(UntrustedReleaseError, match="none of them is here"):
        push_release("two")
    (folders / "hidden").rename(folders / "config/edgeawq/keys")
    second, third = push_release("two"), push_release("three", expires_in_s=3600)
    assert second.trust["signed"] and third.trust["key_name"] == "default" and third.trust["expires"]
    state = trusted(folders)
    assert state["pinned"] and state["counter_release"] == third.release
    assert state["counter"] == third.trust["counter"] > second.trust["counter"]
    with pytest.raises(UntrustedReleaseError, match="older") as caught:
        push_release("two")
    assert "--allow-downgrade" in caught.value.remedy
    assert push_release("two", allow_downgrade=True).trust["override"] is True
    assert trusted(folders)["counter"] == state["counter"]
    assert push_release("three").changed is True


def test_trusting_twice(run: Run, folders: Path) -> None:
    run("key", "init")
    run("key", "init", "work")
    first = json.loads(run("key", "trust", "localhost", "--key", "work", "--json"))
    again = json.loads(run("key", "trust", "localhost", "--key", "work", "--json"))
    assert first == again and first["version"] == 1 and [key["name"] for key in first["keys"]] == ["work"]
    with pytest.raises(DeployError, match="trusts work .* already") as caught:
        run("key", "trust", "localhost")
    assert "edgeawq key rotate" in caught.value.remedy
    assert trusted(folders)["keys"] == [
        {**key, "public": trusted(folders)["keys"][0]["public"]} for key in first["keys"]
    ]


def test_rotation(run: Run, push_release: Callable[..., PushReport], folders: Path) -> None:
    run("key", "init", "old")
    run("key", "init", "new")
    friend = make_signer("friend").public
    run("key", "import-public", "-", text=friend.line)
    with pytest.raises(DeployError, match="no keys pinned"):
        run("key", "rotate", "localhost", "--to", "new")
    run("key", "trust", "localhost", "--key", "old")
    before = push_release("one")
    assert before.trust["key_name"] == "old" and push_release("two").trust["key_name"] == "old"
    with pytest.raises(UsageError, match="does not trust the key 'new'"):
        run("key", "rotate", "localhost", "--to", "new", "--sign-with", "new")
    turned = json.loads(run("key", "rotate", "localhost", "--to", "new", "--to", "friend", "--json"))
    assert [key["name"] for key in turned["keys"]] == ["new", "friend"] and turned["version"] == 2
    assert push_release("two").trust["key_name"] == "new"
    assert push_release("three").trust["key_name"] == "new"
    with pytest.raises(UntrustedReleaseError, match="no longer trusted"):
        run("rollback", "localhost", before.release)


def test_a_rotation_that_locks_oneself_out_is_asked_about(run: Run, folders: Path) -> None:
    run("key", "init")
    run("key", "import-public", "-", text=make_signer("friend").public.line)
    run("key", "trust", "localhost")
    with pytest.raises(click.Abort):
        run("key", "rotate", "localhost", "--to", "friend", text="n\n")
    assert trusted(folders)["version"] == 1
    assert "friend" in run("key", "rotate", "localhost", "--to", "friend", "--yes")
    assert trusted(folders)["version"] == 2


def test_the_counter_is_set_back_after_misuse(run: Run, push_release: Callable[..., PushReport], folders: Path) -> None:
    run("key", "init")
    run("key", "init", "new")
    run("key", "trust", "localhost")
    push_release("one")
    path = folders / "root/trust.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "counter": 2**53 - 1}))  # what a thief would reach
    with pytest.raises(UntrustedReleaseError, match="older"):
        push_release("two")
    run("key", "rotate", "localhost", "--to", "new", "--reset-counter")
    assert push_release("two").trust["key_name"] == "new"


def test_a_damaged_file_on_the_device_accepts_nothing(
    run: Run, push_release: Callable[..., PushReport], folders: Path
) -> None:
    run("key", "init")
    run("key", "trust", "localhost")
    push_release("one")
    second = push_release("two")
    for spoil in (lambda path: path.write_bytes(b"{"), os.unlink):
        spoil(folders / "root/trust.json")
        for call in (
            lambda: push_release("three"),
            lambda: run("key", "trust", "localhost"),
            lambda: run("key", "rotate", "localhost", "--to", "default"),
        ):
            with pytest.raises(DeployError, match=r"trust\.json") as caught:
                call()
            assert "edgeawq key trust" in caught.value.remedy
    assert os.readlink(folders / "root/current").endswith(second.release)
    assert "trust.json" in trusted(folders)["error"]


def test_a_damaged_file_on_the_device_lets_nobody_go_back(
    run: Run, push_release: Callable[..., PushReport], folders: Path
) -> None:
    run("key", "init")
    run("key", "trust", "localhost")
    push_release("one")
    second = push_release("two")
    (folders / "root/trust.json").write_bytes(b"{")
    with pytest.raises(DeployError, match=r"trust\.json"):
        run("rollback", "localhost")
    assert os.readlink(folders / "root/current").endswith(second.release)


# ---------------------------------------------------------------- logs


def test_the_host_log(run: Run, folders: Path) -> None:
    assert "nothing has been noted" in run("log")
    run("key", "init")
    run("key", "trust", "localhost")
    with pytest.raises(EdgeawqError):
        run("key", "rotate", "localhost", "--to", "default", "--sign-with", "nobody")
    entries = json.loads(run("log", "--json"))
    assert [(entry["op"], entry["device"], entry["outcome"]) for entry in entries] == [
        ("key init", "", "ok"),
        ("key trust", "localhost", "ok"),
        ("key rotate", "localhost", "failed"),
    ]
    table = run("log")
    assert "key trust" in table and re.search(r"failed .*\n    there is no key 'nobody'", table)
    assert len(json.loads(run("log", "-n", "1", "--json"))) == 1


def test_the_device_log(run: Run, push_release: Callable[..., PushReport]) -> None:
    assert json.loads(run("log", "localhost", "--json")) == []
    assert "nothing has been noted" in run("log", "localhost")
    run("key", "init")
    run("key", "trust", "localhost")
    release = push_release("one").release
    events = [entry["event"] for entry in json.loads(run("log", "localhost", "--json"))]
    assert events[0] == "pin" and "switch" in events
    assert release in run("log", "localhost") and "pin" not in run("log", "localhost", "-n", "1")


def test_what_a_hostile_device_logs_is_shown_as_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"time": 1e30, "event": "[red]x[/red]", "by": "\x1b[2Jme", "what": {"deep": ["\x07"]}, "\x1b]0;t": "[/]"}
    monkeypatch.setattr(device_trust, "_open", lambda *_: FakeClient({"lines": [hostile, {}]}))
    shown = run("log", "localhost")
    assert "[red]x[/red]" in shown and "\x1b" not in shown and "\x07" not in shown
    for nonsense in (None, {}, [1], "x"):
        monkeypatch.setattr(device_trust, "_open", lambda *_, lines=nonsense: FakeClient({"lines": lines}))
        with pytest.raises(DeployError, match="not understood"):
            run("log", "localhost")


class FakeClient:
    """A receiver that gives the same answer to everything."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        return self.answer

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_hostile_device_that_claims_other_keys_were_pinned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("key", "init")
    for answer in ({}, {"trust": {}}, {"trust": {"pinned": True, "keys": "x"}}, {"trust": None}):
        monkeypatch.setattr(device_trust, "_open", lambda *_, answer=answer: FakeClient(answer))
        with pytest.raises(DeployError, match="not understood"):
            run("key", "trust", "localhost")
