from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeawq.deploy.receiver import wire as wire_module
from edgeawq.deploy.receiver.health import make_environment, parse_last_line, run_bounded
from edgeawq.deploy.receiver.limits import MAX_OUTPUT_BYTES
from edgeawq.deploy.receiver.refusal import HostGone


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def run(script: str, reader: int, timeout_s: float, folder: Path) -> tuple[int | None, bytes, bytes]:
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        wire = wire_module.Wire(reader, sink)
        return run_bounded([sys.executable, "-c", script], dict(os.environ), timeout_s, folder=str(folder), wire=wire)
    finally:
        os.close(sink)


def test_output_errors_and_exit_code(ends: tuple[int, int], tmp_path: Path) -> None:
    script = "import os, sys; print(os.getcwd()); print('bad', file=sys.stderr); sys.exit(3)"
    assert run(script, ends[0], 60, tmp_path) == (3, f"{tmp_path}\n".encode(), b"bad\n")
    os.close(ends[1])


def test_what_prints_endlessly_is_cut_and_ended(ends: tuple[int, int], tmp_path: Path) -> None:
    script = "while True: print('x' * 100000)"
    code, output, _ = run(script, ends[0], 1.0, tmp_path)
    assert code is None and len(output) == MAX_OUTPUT_BYTES
    os.close(ends[1])


def is_running(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_hangs_is_ended_with_its_children(ends: tuple[int, int], tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    assert run(script, ends[0], 1.5, tmp_path)[0] is None
    deadline = time.monotonic() + 20
    while is_running((tmp_path / "pid").read_text()):  # it is killed, but a busy machine takes its time
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(ends[1])


def test_the_end_of_the_connection_ends_it(ends: tuple[int, int], tmp_path: Path) -> None:
    os.close(ends[1])
    with pytest.raises(HostGone):
        run("import time; time.sleep(600)", ends[0], 60, tmp_path)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (b'{"ok": true}', {"ok": True}),
        (b'noise\n{"ok": true, "n": 1}\n\n', {"ok": True, "n": 1}),
        (b'{\n"ok": false\n}\n', {"ok": False}),
        (b"", {}),
        (b"[1]", {}),
        (b"\xff\xfe{}", {}),
        (b"[" * 200_000, {}),
        (b'{"ok": true}\nnoise', {}),
    ],
)
def test_finds_the_answer_at_the_end(output: bytes, found: dict[str, object]) -> None:
    assert parse_last_line(output) == found


def test_nothing_of_this_device_s_python_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONSTARTUP", "/elsewhere")
    environment = make_environment("/device/releases/x")
    assert environment["PYTHONPATH"] == "/device/releases/x/site" and "PYTHONSTARTUP" not in environment
    assert environment["PATH"] == os.environ["PATH"]
