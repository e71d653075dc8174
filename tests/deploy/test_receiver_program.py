from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import edgeawq.deploy.receiver
from edgeawq.deploy.receiver_program import PACKAGE, read_join_program, read_program

BYE = b'{"op":"bye"}\n'


def run(program: str, root: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-I", "-c", program, str(root)], input=data, capture_output=True)


def test_carries_every_module_and_nothing_else() -> None:
    sources = json.loads(zlib.decompress(read_program()[1]))
    folder = Path(edgeawq.deploy.receiver.__file__).parent
    names = {PACKAGE if path.stem == "__init__" else f"{PACKAGE}.{path.stem}" for path in folder.glob("*.py")}
    assert set(sources) == names and all("edgeawq.deploy" not in source for source in sources.values())


def test_is_small_enough_for_every_push() -> None:
    bootstrap, data = read_program()
    assert len(data) < 40_000 and len(bootstrap) < 3000


def test_runs_from_memory_and_leaves_nothing_behind(tmp_path: Path) -> None:
    bootstrap, data = read_program()
    done = run(bootstrap, tmp_path / "root", data + BYE)
    assert done.returncode == 0 and done.stderr == b""
    assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_cut_off_does_nothing(tmp_path: Path) -> None:
    bootstrap, data = read_program()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        assert run(bootstrap, tmp_path / "root", data[:length]).returncode == 98
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_is_too_old_is_told_by_its_exit_code(tmp_path: Path) -> None:
    bootstrap, data = read_program()
    old = "import sys\nsys.version_info = (3, 9, 2)\n"
    assert run(old + bootstrap, tmp_path / "root", data).returncode == 97


@pytest.mark.parametrize("what", ["secret", "folder"])
def test_a_join_that_cannot_succeed_ends(what: str, tmp_path: Path) -> None:
    folder = tmp_path if what == "secret" else tmp_path / "gone"
    done = run(read_join_program(), folder, b"x" * (10 if what == "secret" else 32))
    assert done.returncode == (98 if what == "secret" else 1) and os.listdir(tmp_path) == []
