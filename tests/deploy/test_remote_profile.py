"""`edgeawq profile NAME`: what goes over the pipe to a device, with a stand-in for the release there."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.remote_profile import RemoteProgress, build_command, run_remote_profile
from edgeawq.errors import DeployError, TransferError
from tests.deploy.sshd import SshServer, install_own_ssh

KERNEL = (
    '{"kernel": {"isa": "neon", "triple": "aarch64-unknown-linux-gnu", "cpu": "cortex-a72", "features": ["+neon"]}}'
)
ANSWER = """
    import json, sys
    say = lambda text: print(text, flush=True)
    say(KERNEL)
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    probe = sys.stdin.buffer.read(length)
    say(json.dumps({"progress": {"stage": "memory \\x1b[31m", "share": 0.5, "seconds_left": 3.0}}))
    say(json.dumps({"progress": {"stage": 7, "share": "x", "seconds_left": -1}}))
    say(json.dumps({"profile": {"probe": probe.decode(), "arguments": sys.argv[1:]}}))
"""


@pytest.fixture
def device(tmp_path: Path) -> Device:
    root = make_root(tmp_path)
    return Device(name="board", transport="local", root=str(root), python=sys.executable)


def make_root(folder: Path) -> Path:
    root = folder / "a root with spaces"
    (root / "current").mkdir(parents=True)
    (root / "bin").mkdir()
    return root


def install(device: Device, program: str) -> None:
    """Let `bin/edgeawq` be a Python program."""
    path = Path(device.root, "bin", "edgeawq")
    script = path.with_suffix(".py")
    script.write_text(f"KERNEL = {KERNEL!r}\n" + textwrap.dedent(program))
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    path.chmod(0o755)


def run(device: Device, seen: list[RemoteProgress] | None = None) -> object:
    def build(isa: str, triple: str, cpu: str, features: tuple[str, ...]) -> bytes:
        return f"probe for {isa} {cpu} {features[0]}".encode()

    with connect(device) as transport:
        return run_remote_profile(transport, device, ["--quick"], build, (seen if seen is not None else []).append)


def test_the_probe_goes_there_and_the_profile_comes_back(device: Device) -> None:
    install(device, ANSWER)
    seen: list[RemoteProgress] = []
    assert run(device, seen) == {
        "probe": "probe for neon cortex-a72 +neon",
        "arguments": ["profile", "@bundle", "--serve", "--quick"],
    }
    # nothing of a device reaches the terminal as a control character, or as a share beyond the whole
    assert seen == [RemoteProgress("memory  [31m", 0.5, 3.0), RemoteProgress("", 0.0, None)]


@pytest.mark.server
@pytest.mark.parametrize("transport", ["ssh", "openssh"])
def test_over_ssh(
    transport: str, server: SshServer, isolated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    device = server.device(root=str(make_root(tmp_path)), transport=transport)
    install(device, ANSWER)
    found = run(device)
    assert isinstance(found, dict) and found["probe"] == "probe for neon cortex-a72 +neon"


@pytest.mark.parametrize(
    ("program", "expected", "what"),
    [
        ("import sys; sys.exit('boom: no such command')", DeployError, "boom"),
        ('print(\'{"error": {"what": "no kernel", "remedy": "pack again"}}\')', DeployError, "no kernel"),
        ("print('hello')", TransferError, "no answer of edgeawq"),
        ("print('[1]')", TransferError, "no answer of edgeawq"),
        ('print(\'{"kernel": {"isa": 1}}\')', TransferError, "what CPU"),
        ("print('{\"kernel\": 3}')", TransferError, "what CPU"),
        (
            "print(KERNEL); import sys; sys.stdin.buffer.read(8); sys.exit('killed')",
            DeployError,
            "ended the measurement",
        ),
        ("print('{' + 'x' * 30_000_000)", TransferError, "line of more than"),
    ],
)
def test_what_a_device_may_do_wrong(device: Device, program: str, expected: type[Exception], what: str) -> None:
    install(device, program)
    with pytest.raises(expected, match=what):
        run(device)


def test_nothing_was_pushed(device: Device) -> None:
    Path(device.root, "current").rmdir()
    with pytest.raises(DeployError, match="nothing has been pushed") as caught:
        run(device)
    assert "edgeawq push board" in caught.value.remedy


class Interrupted(list[RemoteProgress]):
    """Raises at the first progress, as Ctrl-C does, at a moment that is known."""

    def append(self, progress: RemoteProgress) -> None:
        super().append(progress)
        raise KeyboardInterrupt


def test_ctrl_c_asks_the_device_for_what_it_has(device: Device) -> None:
    install(
        device,
        """
        import json, sys
        print(KERNEL, flush=True)
        length = int.from_bytes(sys.stdin.buffer.read(8), "big")
        sys.stdin.buffer.read(length)
        print(json.dumps({"progress": {"stage": "memory", "share": 0.1, "seconds_left": None}}), flush=True)
        assert sys.stdin.buffer.read(1) == b""  # the host closes our input
        print(json.dumps({"profile": {"complete": False}}), flush=True)
        """,
    )

    seen = Interrupted()
    assert run(device, seen) == {"complete": False}
    assert len(seen) == 1


def test_ctrl_c_before_anything_was_measured_is_ctrl_c(device: Device) -> None:
    install(
        device,
        """
        import json, sys
        print(KERNEL, flush=True)
        sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "big"))
        print(json.dumps({"progress": {"stage": "starting", "share": 0, "seconds_left": None}}), flush=True)
        sys.exit("edgeawq: interrupted" if sys.stdin.buffer.read(1) == b"" else 1)
        """,
    )
    with pytest.raises(KeyboardInterrupt):
        run(device, Interrupted())


def test_the_root_may_have_blanks(device: Device) -> None:
    assert f"'{device.root}'" in build_command(device, ["--threads=2"])
    assert build_command(device, ["--threads=2"]).endswith("profile @bundle --serve --threads=2")
