from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgeawq.errors import SiteError
from packager import wheelhouse
from packager.wheelhouse import SITE_INFO, assemble_site
from packager.wheels import list_platforms, list_requirements, read_lock, write_lock

NATIVE = {"numpy", "llvmlite", "tokenizers", "markupsafe"}


def make_wheel(folder: Path, name: str, *, tag: str = "py3-none-any", version: str = "99.1") -> Path:
    """A wheel that pip accepts: one module with its version."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\ntag = {tag!r}\n",
        f"{module}/tests/test_it.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n",
    }
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with wheels for cp310 and cp311 on both machines, and some that are too new or for other systems."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for requirement in list_requirements((3, 10)):
        name = re.split("[>=]", requirement)[0]
        if name not in NATIVE:
            make_wheel(folder, name)
            continue
        for machine in ("aarch64", "x86_64"):
            for python in ("cp310-cp310", "cp311-cp311"):
                make_wheel(folder, name, tag=f"{python}-manylinux_2_27_{machine}.manylinux_2_28_{machine}")
            make_wheel(folder, name, tag=f"cp311-cp311-manylinux_2_39_{machine}", version="100.0")
        make_wheel(folder, name, tag="cp311-cp311-macosx_11_0_arm64", version="101.0")
        make_wheel(folder, name, tag="cp311-cp311-musllinux_1_2_aarch64", version="102.0")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wheels"


@pytest.mark.parametrize(("version", "machine"), [((3, 10), "x86_64"), ((3, 11), "aarch64")])
def test_a_site_from_a_folder_of_wheels(tmp_path: Path, wheels: Path, machine: str, version: tuple[int, int]) -> None:
    site = tmp_path / "site"
    summary = assemble_site(version, machine, site, wheels=wheels)
    tag = f"cp3{version[1]}-cp3{version[1]}-manylinux_2_27_{machine}"
    assert tag in (site / "numpy" / "__init__.py").read_text()
    assert not (site / "numpy" / "tests").exists()
    assert (site / "tomli").exists() == (version == (3, 10))
    assert (site / "edgeawq" / "runtime" / "__init__.py").is_file()
    assert not list(site.rglob("RECORD"))
    info = json.loads((site / SITE_INFO).read_text())
    assert (info["python"], info["machine"]) == (f"3.{version[1]}", machine)
    assert info["packages"] == {name: found for name, found, _ in summary.packages}
    assert info["packages"]["prompt-toolkit"] == "99.1"
    files = [path for path in site.rglob("*") if path.is_file()]
    assert (summary.n_files, summary.n_bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert summary.n_bytes == sum(size for _, _, size in summary.packages) + (site / SITE_INFO).stat().st_size


def test_the_same_wheels_give_the_same_files(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_downloads(monkeypatch, wheels)
    first = assemble_site((3, 11), "aarch64", tmp_path / "a")
    second = assemble_site((3, 11), "aarch64", tmp_path / "b")
    other = assemble_site((3, 11), "x86_64", tmp_path / "c")
    assert first.digest == second.digest != other.digest


@pytest.mark.parametrize("name", ["llvmlite", "wcwidth"])
def test_a_missing_wheel_is_named(tmp_path: Path, wheels: Path, name: str) -> None:
    for path in wheels.glob(f"{name}-99*"):
        path.unlink()
    with pytest.raises(SiteError, match=rf"no wheel of {name}\S* for Python 3\.11 on aarch64"):
        assemble_site((3, 11), "aarch64", tmp_path / "site", wheels=wheels)
    assert not (tmp_path / "site").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no folder"):
        assemble_site((3, 11), "aarch64", tmp_path / "site", wheels=tmp_path / "nowhere")


@pytest.mark.parametrize(("version", "machine"), [((3, 9), "aarch64"), ((3, 11), "armv7l"), ((3, 11), "../x")])
def test_devices_that_cannot_be_served(tmp_path: Path, version: tuple[int, int], machine: str) -> None:
    with pytest.raises(SiteError, match=r"3\.9|no wheels for the machine") as caught:
        assemble_site(version, machine, tmp_path / "site")
    assert caught.value.remedy


def count_downloads(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> list[int]:
    """Serve downloads from `wheels` instead of the package index, without pip's start-up time, and count them."""
    calls: list[int] = []

    def serve(version: tuple[int, int], machine: str, folder: Path, **_: Any) -> None:
        calls.append(1)
        tags = ("none-any", f"cp{version[0]}{version[1]}-manylinux_2_27_{machine}.manylinux_2_28_{machine}")
        for requirement in list_requirements(version):
            name = re.split("[>=]", requirement)[0].replace("-", "_")
            found = [path for path in sorted(wheels.glob(f"{name}-99*")) if path.stem.endswith(tags)]
            if not found:
                raise SiteError(f"there is no wheel of {name}", remedy="add it")
            shutil.copy(found[-1], folder)

    monkeypatch.setattr(wheelhouse, "download_wheels", serve)
    return calls


def test_the_second_time_needs_no_network(
    tmp_path: Path, wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_downloads(monkeypatch, wheels)
    said: list[str] = []
    first = assemble_site((3, 11), "aarch64", tmp_path / "a", report=said.append)
    assert said[0] == "downloading 12 packages for Python 3.11 on aarch64"
    second = assemble_site((3, 11), "aarch64", tmp_path / "b", report=said.append)
    assert len(calls) == 1
    assert said[-1] == "unpacking 12 wheels"
    assert first.digest == second.digest
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == ["cp311-aarch64"]

    # a newer version on the index changes nothing until it is asked for
    make_wheel(wheels, "rich", version="99.2")
    assert assemble_site((3, 11), "aarch64", tmp_path / "b").digest == first.digest
    newer = assemble_site((3, 11), "aarch64", tmp_path / "b", refresh=True)
    assert dict((name, version) for name, version, _ in newer.packages)["rich"] == "99.2"
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "lock", "extra"])
def test_a_damaged_cache_is_filled_again(
    tmp_path: Path, wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    calls = count_downloads(monkeypatch, wheels)
    first = assemble_site((3, 11), "aarch64", tmp_path / "a")
    kept = next((cache / "cp311-aarch64").glob("rich-*.whl"))
    content = bytearray(kept.read_bytes())
    if damage == "flip":
        content[100] ^= 1
        kept.write_bytes(content)
    elif damage == "cut":
        kept.write_bytes(content[:-10])
    elif damage == "delete":
        kept.unlink()
    elif damage == "lock":
        (cache / "cp311-aarch64" / "lock.json").write_text("{")
    else:
        make_wheel(cache / "cp311-aarch64", "surprise")
    assert assemble_site((3, 11), "aarch64", tmp_path / "a").digest == first.digest
    assert len(calls) == 2


def test_a_failed_download_keeps_the_earlier_wheels(
    tmp_path: Path, wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_downloads(monkeypatch, wheels)
    first = assemble_site((3, 11), "aarch64", tmp_path / "a")
    for path in wheels.glob("rich-*"):
        path.unlink()
    with pytest.raises(SiteError, match="rich"):
        assemble_site((3, 11), "aarch64", tmp_path / "b", refresh=True)
    assert not (tmp_path / "b").exists()
    assert assemble_site((3, 11), "aarch64", tmp_path / "b").digest == first.digest
    assert len(list(cache.iterdir())) == 2


def test_a_lock_for_other_requirements_does_not_count(tmp_path: Path, wheels: Path) -> None:
    write_lock(wheels, ["numpy>=1"])
    assert read_lock(wheels, ["numpy>=1"]) is not None
    assert read_lock(wheels, ["numpy>=2"]) is None
    (wheels / "lock.json").write_text('{"requirements": ["numpy>=1"], "wheels": 7}')
    assert read_lock(wheels, ["numpy>=1"]) is None


def test_what_is_there_is_not_touched_unless_it_is_a_site(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_downloads(monkeypatch, wheels)
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("dear")
    with pytest.raises(SiteError, match="not a site folder"):
        assemble_site((3, 11), "aarch64", home)
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(SiteError, match="not a site folder"):
        assemble_site((3, 11), "aarch64", tmp_path / "link")
    (home / "letter").unlink()
    first = assemble_site((3, 11), "aarch64", home)
    (home / "rich" / "left-over").write_text("")
    assert assemble_site((3, 11), "aarch64", home).digest == first.digest
    assert not (home / "rich" / "left-over").exists()
    assert home.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("No module named pip", "pip is not installed"),
        ("WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found for rich>=13.7",
         "cannot be reached, and rich>=13.7 for Python 3.11 on aarch64"),
        ("ERROR: No matching distribution found for llvmlite>=0.44", "no wheel of llvmlite>=0.44 for Python 3.11"),
        ("ERROR: something else\n", "something else"),
        ("", "no reason"),
    ],
)  # fmt: skip
def test_pips_words_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, match: str) -> None:
    def fail(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", words)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SiteError, match=match) as caught:
        assemble_site((3, 11), "aarch64", tmp_path / "site")
    assert caught.value.remedy
    assert not (tmp_path / "site").exists()


def test_an_index_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SiteError, match="cannot be reached") as caught:
        assemble_site((3, 11), "aarch64", tmp_path / "site")
    assert "--wheels" in caught.value.remedy


def test_platforms_stop_at_the_oldest_supported_system() -> None:
    platforms = list_platforms("aarch64")
    assert platforms[0] == "manylinux_2_28_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(platforms)


def test_a_real_site_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real wheels for this machine and Python: from the cache, or the package index where there is a network."""
    monkeypatch.delenv("EDGEAWQ_CACHE")
    machine = os.uname().machine
    try:
        summary = assemble_site(sys.version_info[:2], machine, tmp_path / "site")
    except SiteError as error:
        if "cannot be reached" in error.what:
            pytest.skip(f"no network and no wheels in the cache: {error.what}")
        raise
    code = "import edgeawq, numpy, llvmlite.binding, tokenizers, prompt_toolkit, rich.markdown; print(edgeawq.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(summary.path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(str(summary.path)), done.stderr
    assert summary.n_bytes < 300e6
