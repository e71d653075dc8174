"""Which change of the kernels' sources builds which object anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cpu_kernels import build
from device_profiles.target import Target

TARGET = Target("x86_64-unknown-linux-gnu", "x86-64-v3", (), "avx2")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cpu_kernels"
    shutil.copytree(Path(build.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(build, "__file__", str(folder / "build.py"))
    return folder


def keys() -> dict[str, str]:
    return {kind: build._source_key(TARGET, "avx2", kind, (4, 8)) for kind in build.KINDS}


def test_the_kinds_have_keys_of_their_own(sources: Path) -> None:
    assert len(set(keys().values())) == len(build.KINDS)


def test_a_probe_builds_no_decoder_anew(sources: Path) -> None:
    before = keys()
    (sources / "probe" / "compute.py").write_text("# another text\n")
    after = keys()
    assert {kind for kind in build.KINDS if before[kind] != after[kind]} == {"probe"}


@pytest.mark.parametrize("name", ["decoder.py", "isa/avx2.py", "threads.py"])
def test_any_other_source_builds_everything_anew(sources: Path, name: str) -> None:
    before = keys()
    (sources / name).write_text("# another text\n")
    assert all(before[kind] != key for kind, key in keys().items())
