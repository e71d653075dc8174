"""`edgeawq chat NAME`: a real terminal here, an SSH connection, a real terminal there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pexpect
import pytest

from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import Device, Inventory, write_device
from edgeawq.deploy.push import PrepareSite, push
from edgeawq.deploy.remote_chat import build_chat_command
from tests.deploy.fakes import make_bundle
from tests.deploy.sshd import SshServer, install_own_ssh

SCRIPT = textwrap.dedent(
    """
    import sys
    from edgeawq.deploy.remote_chat import run_remote_chat
    from edgeawq.errors import EdgeawqError
    try:
        sys.exit(run_remote_chat("board", sys.argv[1:]))
    except EdgeawqError as error:
        sys.exit(f"{error.what} | {error.remedy}")
    """
)


@pytest.fixture(params=["ssh", "openssh", "local"])
def board(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bundle: Path,
    site: PrepareSite,
    isolated_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Device:
    """A device to which a bundle was pushed, in an inventory that the environment names."""
    root = str(tmp_path / "a root with spaces")
    if request.param != "local":
        install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
        server = request.getfixturevalue("server")
        assert isinstance(server, SshServer)
        device = server.device(root=root, transport=request.param)
    else:
        device = Device(name="board", transport="local", root=root, python=sys.executable)
    with connect(device) as transport:
        push(transport, device, bundle, site=site)
    monkeypatch.setenv("EDGEAWQ_INVENTORY", str(tmp_path / "edgeawq.toml"))
    write_device(Inventory(tmp_path / "edgeawq.toml"), device)
    return device


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], input=stdin, capture_output=True, text=True)


def spawn(*arguments: str) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable,
        ["-c", SCRIPT, *arguments],
        dimensions=(30, 100),
        env={**os.environ, "TERM": "xterm-256color"},
        encoding="utf-8",
        timeout=30,
    )


def test_a_terminal_here_is_a_terminal_there(board: Device) -> None:
    child = spawn()
    child.expect("terminal 100 30 xterm-256color")
    child.sendline("grüße ✓")
    child.expect("you said: grüße ✓")
    child.setwinsize(20, 61)
    child.expect("resized 61 20")
    child.sendcontrol("c")
    child.expect("interrupted")
    child.sendline("still there")
    child.expect("you said: still there")
    child.sendline("quit")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 7


def test_ctrl_d_ends_the_chat_and_the_terminal_is_as_before(board: Device) -> None:
    command = f"{sys.executable} -c '{SCRIPT}'; stty -a; echo done"
    child = pexpect.spawn("/bin/sh", ["-c", command], dimensions=(30, 100), encoding="utf-8", timeout=30)
    child.expect("terminal 100 30")
    child.sendcontrol("d")
    child.expect("done")
    assert " icanon" in child.before and " echo " in child.before and "-icanon" not in child.before
    child.expect(pexpect.EOF)
    child.wait()


def test_without_a_terminal_it_is_a_plain_pipe(board: Device) -> None:
    done = run(stdin="Was ist groß?\n")
    assert (done.stdout, done.stderr, done.returncode) == ("piped: Was ist groß? ✓\n", "to stderr\n", 0)


def test_arguments_arrive_as_they_are(board: Device) -> None:
    prompt = 'it\'s $HOME; `id` "x" ~/y\nsecond line \\ ü'
    done = run("--prompt", prompt)
    assert done.stdout == f"answer to {prompt} by one\n", done.stderr
    assert run("--exit", "41").returncode == 41


def test_says_when_nothing_was_pushed(board: Device, tmp_path: Path) -> None:
    (Path(board.root) / "current").unlink()
    done = run()
    assert "nothing has been pushed to 'board' yet | edgeawq push board MODEL" in done.stderr and done.returncode == 1


def test_a_chat_stays_with_its_release_while_another_is_pushed(
    board: Device, site: PrepareSite, tmp_path: Path
) -> None:
    child = spawn()
    child.expect("terminal 100 30")
    with connect(board) as transport:
        push(transport, board, make_bundle(tmp_path / "next", marker="next"), site=site)
    child.sendline("hello")
    child.expect("you said: hello")
    child.sendline("quit")
    child.expect(pexpect.EOF)
    child.wait()
    assert run("--prompt", "x").stdout == "answer to x by next\n"


@pytest.mark.parametrize("kind", ["ssh", "openssh"])
def test_a_connection_that_breaks_gives_the_terminal_back(
    server: SshServer, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    device = server.device(transport=kind)
    script = textwrap.dedent(
        f"""
        import json, sys
        from edgeawq.deploy.connect import connect
        from edgeawq.deploy.inventory import Device
        from edgeawq.errors import EdgeawqError
        try:
            with connect(Device(**json.loads({json.dumps(json.dumps(device.__dict__))}))) as transport:
                transport.run_terminal("echo ready; kill -9 $PPID; sleep 5")
        except EdgeawqError as error:
            print("caught", error.what)
        """
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    child = pexpect.spawn(
        "/bin/sh", ["-c", f"{sys.executable} {path}; stty -a; echo done"], encoding="utf-8", timeout=60
    )
    child.expect("caught the connection to .* was lost")
    child.expect(" icanon")
    child.expect(pexpect.EOF)
    child.wait()


def test_forwards_what_the_terminal_wants(local_device: Device) -> None:
    command = build_chat_command(
        local_device, ["--prompt", "x y"], {"NO_COLOR": "1", "SECRET": "s", "COLORTERM": "a b"}
    )
    assert "export NO_COLOR=1 COLORTERM='a b';" in command and "SECRET" not in command
    assert "'x y'" in command
    home = build_chat_command(Device(name="d", host="h"), [], {})
    assert home.startswith('root="$HOME"/.edgeawq; ')
