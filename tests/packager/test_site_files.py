from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeawq.errors import SiteError
from packager.site_files import OWN_PACKAGES, choose_path, copy_own_packages, unpack_wheel
from packager.wheels import REQUIREMENTS

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("numpy/__init__.py", "numpy/__init__.py"),
        ("numpy.libs/libopenblas.so", "numpy.libs/libopenblas.so"),
        ("numpy/_core/tests/test_x.py", None),
        ("numpy/_core/include/numpy/a.h", None),
        ("numpy/__init__.pyi", None),
        ("jinja2/tests.py", "jinja2/tests.py"),
        ("tests/data.txt", "tests/data.txt"),  # a package of that name, not a folder of tests
        ("x-1.data/purelib/x/a.py", "x/a.py"),
        ("x-1.data/platlib/x/a.so", "x/a.so"),
        ("x-1.data/scripts/x", None),
        ("x-1.data/headers/x.h", None),
        ("x-1.dist-info/METADATA", "x-1.dist-info/METADATA"),
        ("x-1.dist-info/RECORD", None),
        ("x-1.dist-info/entry_points.txt", None),
        ("x-1.dist-info/LICENSE.txt", "x-1.dist-info/LICENSE.txt"),
        ("x-1.dist-info/licenses/LICENCE", "x-1.dist-info/licenses/LICENCE"),
        ("x-1.dist-info/sboms/x.json", None),
    ],
)
def test_what_a_device_needs(name: str, kept: str | None) -> None:
    path = choose_path(name)
    assert (None if path is None else path.as_posix()) == kept


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "x/../../y", "x\\y", "C:/x", ""])
def test_unsafe_paths_in_a_wheel_are_refused(name: str) -> None:
    with pytest.raises(SiteError, match="unsafe"):
        choose_path(name)


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return path


def test_a_wheel_is_unpacked_and_counted(tmp_path: Path) -> None:
    wheel = make_zip(tmp_path / "a.whl", {"a/__init__.py": b"x = 1\n", "a/tests/t.py": b"", "a/b/c.so": b"\x7fELF"})
    assert unpack_wheel(wheel, tmp_path / "site") == 10
    assert sorted(p.name for p in (tmp_path / "site").rglob("*") if p.is_file()) == ["__init__.py", "c.so"]
    assert (tmp_path / "site" / "a" / "b" / "c.so").stat().st_mode & 0o777 == 0o644


def test_damaged_wheels_are_refused(tmp_path: Path) -> None:
    good = make_zip(tmp_path / "a.whl", {"a/__init__.py": bytes(range(256)) * 100}).read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"not a zip file",
        "cut": good[: len(good) // 2],
        "flipped": good[:60] + bytes([good[60] ^ 255]) + good[61:],
    }.items():
        (tmp_path / f"{name}.whl").write_bytes(content)
        with pytest.raises(SiteError, match="damaged"):
            unpack_wheel(tmp_path / f"{name}.whl", tmp_path / name)


def test_two_wheels_with_the_same_file_are_refused(tmp_path: Path) -> None:
    unpack_wheel(make_zip(tmp_path / "a.whl", {"a.py": b"1"}), tmp_path / "site")
    with pytest.raises(SiteError, match=r"a\.py"):
        unpack_wheel(make_zip(tmp_path / "b.whl", {"a.py": b"2"}), tmp_path / "site")


def test_own_packages_hold_the_devices_part_only(tmp_path: Path) -> None:
    n_bytes = copy_own_packages(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert n_bytes == sum(path.stat().st_size for path in files)
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    assert {"edgeawq/__main__.py", "edgeawq/runtime/decoder.py", "packager/manifest.py"} <= names
    assert "device_profiles/data/pi4.toml" in names
    assert not [name for name in names if "quantize/" in name or "deploy/" in name or "__pycache__" in name]


def test_the_devices_part_imports_with_only_the_devices_packages(tmp_path: Path) -> None:
    """Every module of runtime and chat, and the commands a device runs, beside the packages that a device gets."""
    copy_own_packages(tmp_path)
    allowed = {re.split("[>=]", requirement)[0].replace("-", "_") for requirement in REQUIREMENTS}
    allowed |= {"markdown_it", "tomli"}
    installed = Path(__import__("numpy").__file__).parents[1]
    code = f"""
import importlib, importlib.machinery, pkgutil, sys
sys.path.insert(0, {str(tmp_path)!r})
class DevicePackages:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None and name in {sorted(allowed)!r}:
            return importlib.machinery.PathFinder.find_spec(name, [{str(installed)!r}])
sys.meta_path.append(DevicePackages)
import edgeawq.runtime, edgeawq.tui
found = [m.name for p in (edgeawq.runtime, edgeawq.tui) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in [*found, "edgeawq.__main__", "edgeawq.cli.main", *sys.argv[1:]]:
    importlib.import_module(name)
assert edgeawq.__file__.startswith({str(tmp_path)!r}), edgeawq.__file__
forbidden = {{"torch", "transformers", "numba", "paramiko", "huggingface_hub"}} & set(sys.modules)
assert not forbidden, forbidden
print(len(found))
"""
    commands = [f"edgeawq.cli.{name}" for name in ("run", "chat") if (REPOSITORY / f"edgeawq/cli/{name}.py").exists()]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code, *commands], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_list_of_wheels_covers_the_projects_dependencies() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    wanted = {re.split(r"[>=;]", line)[0].lower() for line in re.findall(r'"([^"]+)"', block.group(1))}
    listed = {re.split(r"[>=]", requirement)[0] for requirement in REQUIREMENTS}
    assert wanted - {"tomli"} <= listed


def test_every_own_package_is_there() -> None:
    for package, parts in OWN_PACKAGES.items():
        for part in parts:
            assert (REPOSITORY / package / part).exists(), f"{package}/{part}"
