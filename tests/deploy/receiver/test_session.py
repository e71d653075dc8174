from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from edgeawq.deploy.receiver.limits import MAX_LINE_BYTES, MAX_RELEASE_BYTES, PROTOCOL
from tests.deploy.receiver.driver import Wire, describe, describe_answering, install


def test_greets_with_what_the_host_must_know(wire: Wire, root: Path) -> None:
    assert wire.greeting["magic"] == "EDGEAWQ-RECEIVER" and wire.greeting["protocol"] == PROTOCOL
    assert wire.greeting["root"] == str(root) and wire.greeting["machine"] == platform.machine()
    assert wire.ask("bye") == {"ok": True}
    assert wire.end() == 0 and not root.exists(), "a greeting must not leave anything behind"


def test_a_session_from_plan_to_switch(wire: Wire, root: Path) -> None:
    release, contents = describe_answering(bundle__w=os.urandom(50))
    missing = wire.begin(release)
    assert missing == [[0], [1]]
    wire.put_all(contents, missing)
    flushed = wire.ask("flush")
    assert (flushed["missing"], flushed["files"], flushed["bytes"]) == ([], 2, sum(map(len, contents)))
    identity = wire.ask("commit")["id"]
    assert wire.ask("check", release=identity, timeout_s=60)["ok"]
    assert wire.ask("switch", release=identity) == {"ok": True, "current": identity, "previous": None}
    status = wire.ask("status")
    assert status["current"] == identity and status["lock"]["alive"] and status["lock"]["owner"] == "me"
    assert [event["event"] for event in wire.ask("log", count=5)["lines"]] == ["commit", "switch"]
    assert wire.ask("ping") == {"ok": True}


def test_a_known_release_needs_no_description(wire: Wire, root: Path) -> None:
    identity = install(root)
    assert wire.ask("plan", release=identity)["missing"] == []
    assert wire.ask("plan", release="0" * 16)["code"] == "no-release"
    (root / "releases" / identity / "release.json").write_text("{}")
    assert wire.ask("plan", release=identity)["code"] == "damaged"


@pytest.mark.parametrize(
    "line",
    [b"not json\n", b"[]\n", b'"x"\n', b"null\n", b'{"op": "rm"}\n', b'{"op": ["put"]}\n', b"{}\n", b"\xff\xfe\n"]
    + [b"[" * 30_000 + b"\n", b'{"op": "serve"}\n', b'{"op": "__init__"}\n'],
)
def test_nonsense_ends_the_session(line: bytes, wire: Wire) -> None:
    wire.send(line)
    answer = wire.read()
    assert answer["code"] == "protocol" and answer["fatal"]
    assert wire.end() == 0 and wire.stderr == ""


def test_an_endless_line_is_cut(wire: Wire) -> None:
    with contextlib.suppress(BrokenPipeError):
        wire.send(b"x" * (MAX_LINE_BYTES * 4))
    assert "longer than" in wire.read()["what"]
    assert wire.process.wait(20) == 0


@pytest.mark.parametrize("size", [1 << 40, MAX_RELEASE_BYTES + 1, -1, "1", True, None, 1.5])
@pytest.mark.parametrize("which", ["size", "length"])
def test_an_endless_description_is_refused_before_it_is_read(size: object, which: str, wire: Wire) -> None:
    answer = wire.ask("plan", **{"size": 10, "length": 10, which: size})
    assert answer["code"] == "protocol" and answer["fatal"]


def test_a_description_that_unpacks_to_more_is_refused(wire: Wire) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    for size in (1000, MAX_RELEASE_BYTES):
        answer = wire.ask("plan", bomb, size=size, length=len(bomb))
        assert answer["code"] == "manifest" and "announced" in answer["what"]
    status = Path(f"/proc/{wire.process.pid}/status").read_text()
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kb < 150_000, "what it unpacks to must not be held in memory"


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_a_description_that_arrives_damaged_is_refused(damage: str, wire: Wire) -> None:
    packed = bytearray(zlib.compress(b"x" * 1000 + os.urandom(50)))
    if damage == "cut":
        packed = packed[:-5]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0x55
    else:
        packed = bytearray(b"{}" * 20)
    answer = wire.ask("plan", bytes(packed), size=1050, length=len(packed))
    assert answer["code"] == "manifest" and wire.ask("ping")["ok"]


@pytest.mark.parametrize("identity", ["../../etc", "0" * 15, "0" * 16, None, 3, "current", "0123456789ABCDEF"])
def test_names_of_releases_are_checked(identity: object, wire: Wire) -> None:
    wire.ask("lock", owner="me")
    for op in ("check", "switch", "verify", "plan"):
        answer = wire.ask(op, release=identity, timeout_s=1)
        assert answer["code"] in ("protocol", "no-release"), (op, answer)


@pytest.mark.parametrize("op", ["assemble", "channels", "flush", "commit"])
def test_an_operation_out_of_order_is_refused(op: str, wire: Wire, root: Path) -> None:
    assert wire.ask(op)["code"] == "protocol"
    wire.ask("lock", owner="me")
    assert wire.ask(op)["code"] == "protocol"
    assert list((root / "releases").iterdir()) == []


def test_assemble_needs_the_lock(wire: Wire) -> None:
    assert wire.plan(describe(site__a=b"a"))["ok"]
    assert wire.ask("assemble")["code"] == "protocol"


def test_switch_needs_a_check_in_the_same_session(wire: Wire, root: Path) -> None:
    wire.put_all([b"a"], wire.begin(describe(site__a=b"a")))
    identity = wire.ask("commit")["id"]
    answer = wire.ask("switch", release=identity)
    assert answer["code"] == "protocol" and "not checked" in answer["what"]
    assert wire.ask("check", release=identity, timeout_s=30)["code"] == "health"
    assert not wire.ask("switch", release=identity)["ok"]
    assert not (root / "current").is_symlink()


@pytest.mark.parametrize("timeout_s", [0, -1, None, "5", 1e9, [1]])
def test_check_needs_a_sane_time_limit(timeout_s: object, wire: Wire, root: Path) -> None:
    identity = install(root)
    assert wire.ask("check", release=identity, timeout_s=timeout_s)["code"] == "protocol"


@pytest.mark.parametrize("arguments", [{}, {"owner": 3}, {"owner": "x" * 300}, {"owner": "a\nb"}, {"wait_s": 1e9}])
def test_lock_checks_its_arguments(arguments: dict[str, Any], wire: Wire) -> None:
    answer = wire.ask("lock", **{"owner": "me", **arguments} if "wait_s" in arguments else arguments)
    assert answer["code"] == "protocol"


def test_gc_and_log_check_their_arguments_and_gc_needs_the_lock(wire: Wire) -> None:
    for keep in (0, -1, "2", None, True, 10**9):
        assert wire.ask("gc", keep=keep)["code"] == "protocol"
    for count in (-1, "2", None, 10**9):
        assert wire.ask("log", count=count)["code"] == "protocol"
    wire.ask("lock", owner="me")
    wire.ask("unlock")
    assert wire.ask("gc", keep=2)["code"] == "lock-lost"


def test_ends_and_unlocks_when_the_host_goes_away(wire: Wire, root: Path) -> None:
    wire.ask("lock", owner="me")
    assert (root / "lock").is_dir()
    assert wire.end() == 0 and not (root / "lock").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(number: int, wire: Wire, root: Path) -> None:
    wire.ask("lock", owner="me")
    wire.process.send_signal(number)
    assert wire.process.wait(20) == 0 and not (root / "lock").exists()


def test_a_hanging_check_ends_with_the_connection(wire: Wire, root: Path, tmp_path: Path) -> None:
    stub = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)".encode()
    release = describe(site__a=stub)
    release["files"][0]["path"] = "site/edgeawq/__main__.py"
    wire.put_all([stub], wire.begin(release))
    identity = wire.ask("commit")["id"]
    wire.send({"op": "check", "release": identity, "timeout_s": 500})
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert wire.end() == 0
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int((tmp_path / "pid").read_text()), 0)
            time.sleep(0.05)
    assert not (root / "lock").exists()


def test_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    from edgeawq.deploy.receiver_program import read_program

    bootstrap, program = read_program()
    tell = "import atexit, sys\natexit.register(lambda: sys.stderr.write(' '.join(sorted(sys.modules))))\n"
    command = [sys.executable, "-I", "-S", "-c", tell + bootstrap, str(tmp_path / "root")]
    done = subprocess.run(command, input=program + b'{"op":"bye"}\n', capture_output=True, check=True)
    names = {name.partition(".")[0] for name in done.stderr.decode().split()} - {"__main__", "edgeawq_receiver"}
    assert "zlib" in names and names <= set(sys.stdlib_module_names)
