"""The commands as a user calls them, against a real sshd; where a terminal or a pipe matters in their own process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import unittest.mock
from pathlib import Path

import pexpect
import pytest

import packager.wheelhouse
from edgeawq.cli import profile_measure
from edgeawq.cli.main import main
from edgeawq.cli.push import should_measure
from edgeawq.deploy.push import PushReport
from edgeawq.profiling.history import load_history, profile_folder
from edgeawq.profiling.schema import Profile
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.invariants import answer
from tests.deploy.sshd import SshServer, free_port, make_key
from tests.profiling.example import make_profile

# The command line, with a site folder that needs no wheels.
MAIN = textwrap.dedent(
    """
    import os, pathlib, shutil, sys
    import packager.wheelhouse
    def assemble_site(python_version, machine, destination, **more):
        assert python_version == sys.version_info[:2]
        shutil.copytree(os.environ["TEST_SITE"], destination)
    packager.wheelhouse.assemble_site = assemble_site
    from edgeawq.cli.main import main
    main()
    """
)


def copy_site(python_version: tuple[int, int], machine: str, destination: Path, **more: object) -> None:
    assert python_version == sys.version_info[:2]
    shutil.copytree(os.environ["TEST_SITE"], destination)


class Shell:
    """Runs `edgeawq` with an inventory of its own."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "edgeawq.toml"
        self.environment = {
            **os.environ,
            "TEST_SITE": str(make_site(folder / "site")),
            "EDGEAWQ_INVENTORY": str(self.inventory),
            "EDGEAWQ_LOCAL_ROOT": str(folder / "local root"),
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call the command line in this process: its imports alone take longer than most commands."""
        said, complained = io.StringIO(), io.StringIO()
        with (
            unittest.mock.patch.dict(os.environ, {**self.environment, **environment}),
            unittest.mock.patch.object(sys, "argv", ["edgeawq", *arguments]),
            unittest.mock.patch.object(packager.wheelhouse, "assemble_site", copy_site),
            open(os.devnull) as nothing,
            unittest.mock.patch.object(sys, "stdin", nothing),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(complained),
            pytest.raises(SystemExit) as end,
        ):
            main()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(arguments, end.value.code, said.getvalue(), complained.getvalue())

    def run_apart(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call the command line in a process of its own."""
        return subprocess.run(
            [sys.executable, "-c", MAIN, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**self.environment, **environment},
            start_new_session=True,  # no terminal to ask at
        )

    def good(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def bad(self, *arguments: str, code: int) -> str:
        done = self.run(*arguments)
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr and "  → " in done.stderr, done.stderr
        return done.stderr

    def spawn(self, *arguments: str) -> pexpect.spawn:
        return pexpect.spawn(
            sys.executable,
            ["-c", MAIN, *arguments],
            env=self.environment,  # type: ignore[arg-type]
            encoding="utf-8",
            timeout=30,
            dimensions=(24, 80),
        )


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def add(shell: Shell, server: SshServer, *more: str) -> str:
    address = f"{server.user}@127.0.0.1:{server.port}"
    options = ["--identity", str(server.identity), "--known-hosts", str(server.known_hosts)]
    return shell.good("device", "add", "board", address, *options, "--profile", "host", *more)


def test_a_new_user_s_way(shell: Shell, server: SshServer, tmp_path: Path) -> None:
    server.known_hosts.unlink()
    address = f"{server.user}@127.0.0.1:{server.port}"
    options = ["--identity", str(server.identity), "--known-hosts", str(server.known_hosts), "--profile", "host"]
    child = shell.spawn("device", "add", "board", address, *options)
    shown = subprocess.run(["ssh-keygen", "-lf", str(server.host_key)], capture_output=True, text=True).stdout
    child.expect_exact(shown.split()[1])
    child.expect("Is that right")
    child.sendline("y")
    child.expect("memory")
    child.expect("free space")
    child.expect("python")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0 and server.known_hosts.read_text().count("\n") == 1
    assert "[devices.board]" in shell.inventory.read_text()

    assert "board" in shell.good("device", "list") and "localhost" in shell.good("device", "list")
    bundle = make_bundle(tmp_path / "one.edgeawq")
    output = shell.good("push", "board", str(bundle))
    assert re.search(r"19 of 20 files, 30\d kB sent in .* s \(.*/s\)", output), output
    assert "12.5 tokens/s" in output and "(before: nothing)" in output
    again = shell.good("push", "board", str(bundle))
    assert "0 of 20 files, 0 B sent" in again and "nothing was switched" in again
    status = shell.good("status", "board")
    assert "tiny for pi4" in status and "good" in status
    assert shell.run_apart("chat", "board", "--prompt", "hello there").stdout.strip().endswith("by one")


def test_a_host_key_that_is_not_accepted_changes_nothing(shell: Shell, server: SshServer) -> None:
    server.known_hosts.unlink()
    address = f"{server.user}@127.0.0.1:{server.port}"
    options = ["--identity", str(server.identity), "--known-hosts", str(server.known_hosts)]
    child = shell.spawn("device", "add", "board", address, *options)
    child.expect("Is that right")
    child.sendline("n")
    child.expect("is not known")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 5
    shell.bad("device", "add", "board", address, *options, "--yes-host-key", "SHA256:other", code=5)
    assert not shell.inventory.exists() and not server.known_hosts.exists()
    shown = subprocess.run(["ssh-keygen", "-lf", str(server.host_key)], capture_output=True, text=True).stdout
    shell.good("device", "add", "board", address, *options, "--yes-host-key", shown.split()[1])
    assert shell.inventory.exists() and server.known_hosts.exists()


def test_device_commands(shell: Shell, server: SshServer) -> None:
    facts = json.loads(add(shell, server, "--json", "--model", "some-model", "--root", "/data/edgeawq"))
    assert facts["profile"] == "host" and facts["facts"]["home"] == str(server.home)
    assert "already" in shell.bad("device", "add", "board", "x@y", code=2)
    listed = json.loads(shell.good("device", "list", "--json"))
    assert [device["name"] for device in listed] == ["board", "localhost"]
    assert (listed[0]["root"], listed[0]["model"]) == ("/data/edgeawq", "some-model")
    assert "cores" in shell.good("device", "show", "board")
    assert json.loads(shell.good("device", "show", "localhost", "--json"))["facts"]["system"] == "Linux"
    assert "'board'" in shell.bad("device", "show", "baord", code=2)
    shell.good("device", "remove", "board")
    assert "board" not in shell.good("device", "list")
    assert "needs no adding" in shell.bad("device", "add", "localhost", "x@y", code=2)
    assert "'raspi'" in shell.bad("device", "add", "b", "x@127.0.0.1:1", "--profile", "raspi", code=1)


def test_trouble_has_its_own_exit_code_and_a_way_out(shell: Shell, server: SshServer, tmp_path: Path) -> None:
    add(shell, server)
    bundle = str(make_bundle(tmp_path / "one.edgeawq"))
    shell.good("push", "board", bundle)
    root = server.home / ".edgeawq"
    bad = str(make_bundle(tmp_path / "bad.edgeawq", behave="crash"))
    message = shell.bad("push", "board", bad, code=3)
    assert "goes on with release" in message and "illegal instruction" in message
    other = str(make_bundle(tmp_path / "other.edgeawq", machine="riscv64"))
    assert "riscv64" in shell.bad("push", "board", other, code=3)
    assert "there is no model" in shell.bad("push", "board", str(tmp_path / "nothing"), code=2)
    assert "embedded:" in shell.bad("push", "board", code=2)
    assert "did you mean 'board'" in shell.bad("push", "boord", bundle, code=2)
    text = shell.inventory.read_text()
    wrong = make_key(tmp_path / "wrong")
    shell.inventory.write_text(text.replace(str(server.identity), str(wrong)))
    assert "was refused" in shell.bad("push", "board", bundle, code=5)
    shell.inventory.write_text(text.replace(str(server.port), str(free_port())))
    assert "refuses connections" in shell.bad("push", "board", bundle, "--retries", "0", code=4)
    shell.inventory.write_text(text)
    server.change_host_key()
    message = shell.bad("push", "board", bundle, code=5)
    assert "another host key" in message and "ssh-keygen -R" in message
    assert answer(root) == "one"
    assert "no answer" in shell.run("status").stdout
    assert shell.run("status").returncode == 5
    failed = json.loads(shell.run("status", "board", "--json").stdout)
    assert failed[0]["error"]["type"] == "HostKeyError"


def test_local_device_and_releases(shell: Shell, tmp_path: Path) -> None:
    root = tmp_path / "local root"
    first = json.loads(shell.good("push", "localhost", str(make_bundle(tmp_path / "one")), "--json"))
    plan = shell.good("push", "localhost", str(make_bundle(tmp_path / "two", marker="two")), "--dry-run")
    assert "would be pushed" in plan and answer(root) == "one"
    second = json.loads(shell.good("push", "localhost", str(tmp_path / "two"), "--json"))
    assert second["previous"] == first["release"] and second["health"]["marker"] == "two"
    assert first["release"] in shell.good("rollback", "localhost") and answer(root) == "one"
    back = json.loads(shell.good("rollback", "localhost", second["release"][:5], "--json"))
    assert back["release"] == second["release"] and answer(root) == "two"
    assert "no release 'ffff'" in shell.bad("rollback", "localhost", "ffff", code=3)
    history = shell.good("history", "localhost")
    assert first["release"] in history and "previous" in history
    assert len(json.loads(shell.good("history", "localhost", "--json"))["history"]) == 4
    assert "removed no release" in shell.good("gc", "localhost")
    assert json.loads(shell.good("gc", "localhost", "--json")) == {"removed": [], "freed": 0}
    status = json.loads(shell.good("status", "--json"))
    assert status[0]["current"] == second["release"] and status[0]["facts"]["system"] == "Linux"
    for arguments in (("status",), ("history", "localhost"), ("log",)):
        shown = shell.run(*arguments, COLUMNS="80").stdout.splitlines()
        assert max(map(len, shown)) <= 80
        assert any(second["release"] in line for line in shown)


def test_the_inventory_can_name_the_model(shell: Shell, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    shell.inventory.write_text(f'[devices.localhost]\nmodel = "{bundle}"\nkeep = 2\n')
    assert json.loads(shell.good("push", "localhost", "--json"))["changed"] is True


def test_output_is_plain_in_a_pipe_and_quiet_with_json(shell: Shell, tmp_path: Path) -> None:
    bundle = str(make_bundle(tmp_path / "one"))
    done = shell.run_apart("push", "localhost", bundle)
    assert "\x1b" not in done.stdout + done.stderr and "health check on the device" in done.stderr
    assert shell.run_apart("push", "localhost", bundle, "--json").stderr == ""


@pytest.mark.parametrize("command", ["device", "push", "status", "rollback", "history", "gc", "device add"])
def test_help_has_an_example(shell: Shell, command: str) -> None:
    assert "Example:" in shell.good(*command.split(), "--help")


def test_a_key_is_pinned_when_a_device_is_added(shell: Shell, server: SshServer, tmp_path: Path) -> None:
    shell.good("key", "init", "--no-passphrase")
    add(shell, server)
    assert (server.home / ".edgeawq" / "trust.json").exists()
    bundle = make_bundle(tmp_path / "one.edgeawq")
    assert "signed with default" in shell.good("push", "board", str(bundle))
    assert "default" in shell.good("status", "board")
    log = shell.good("log")
    assert "key trust" in log and "push" in log
    # A colleague with another key adds the same device: nothing there changes, and what they push is refused.
    shell.environment["EDGEAWQ_KEYS"] = str(tmp_path / "colleague")
    shell.good("key", "init", "--no-passphrase")
    add(shell, server, "--replace")
    other = make_bundle(tmp_path / "two.edgeawq", marker="two")
    assert "the device wants a signature by one" in " ".join(shell.bad("push", "board", str(other), code=3).split())
    assert shell.run_apart("chat", "board", "--prompt", "hello").stdout.strip().endswith("by one")


def test_nothing_is_pinned_where_that_is_not_wanted(shell: Shell, server: SshServer) -> None:
    shell.good("key", "init", "--no-passphrase")
    add(shell, server, "--no-trust")
    assert not (server.home / ".edgeawq" / "trust.json").exists()


@pytest.mark.parametrize(
    ("wanted", "watched", "changed", "emulator", "measured"),
    [
        (None, True, True, "", True),
        (None, False, True, "", False),  # a script does not wait for what it has not asked for
        (None, True, False, "", False),
        (None, True, True, "qemu-aarch64", False),
        (True, False, False, "qemu-aarch64", True),
        (False, True, True, "", False),
    ],
)
def test_a_new_release_is_measured_where_somebody_is_there_to_wait(
    wanted: bool | None, watched: bool, changed: bool, emulator: str, measured: bool
) -> None:
    report = PushReport(
        device="pi4",
        address="pi4",
        release="0" * 16,
        previous=None,
        changed=changed,
        dry_run=False,
        files=1,
        total_bytes=1,
        files_sent=1,
        bytes_sent=1,
        wire_bytes=1,
        channels=1,
        upload_s=0.0,
        health={},
        health_s=0.0,
        emulator=emulator,
    )
    assert should_measure(wanted, report, is_watched=watched) is measured


def test_what_was_measured_after_a_push_is_kept_for_status(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The measurement itself has tests of its own."""
    asked = []

    def measure(name: str, **more: object) -> Profile:
        asked.append((name, more["amount"]))
        return make_profile(name=name)

    monkeypatch.setattr(profile_measure, "measure_device_named", measure)
    bundle, cache = str(make_bundle(tmp_path / "one")), tmp_path / "cache"
    assert shell.run("push", "localhost", bundle, "--measure", EDGEAWQ_CACHE=str(cache)).returncode == 0
    assert asked == [("localhost", "quick")]
    kept = load_history(profile_folder(cache / "profiles", "localhost"))
    assert [profile.device.name for profile in kept] == ["localhost"]
