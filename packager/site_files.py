"""What goes into a device's site folder: wheels without what a device never uses, and the device's part of edgeawq."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from edgeawq.errors import SiteError

MAX_SITE_BYTES = 2 << 30
_CHUNK = 1 << 20

# Never used on a device: tests, type stubs, sources and headers for compilers, pip's own records, build lists.
_SKIPPED_FOLDERS = {"tests", "__pycache__", "include", "f2py", "_pyinstaller", "sboms"}
_SKIPPED_SUFFIXES = {".pyi", ".pyx", ".pxd", ".pyf", ".h", ".c", ".f", ".f90", ".a", ".lib", ".cmake", ".pc", ".pyc"}
# METADATA stays because packages ask importlib.metadata for their version; licences stay because they must.
_KEPT_INFO = ("METADATA", "LICEN", "COPYING", "NOTICE", "AUTHORS")

# package → the parts of it that a device runs; everything else is the host's
OWN_PACKAGES: dict[str, tuple[str, ...]] = {
    "edgeawq": (
        "__init__.py",
        "__main__.py",
        "errors.py",
        "py.typed",
        "runtime",
        "tui",
        "cli",
        "profiling/__init__.py",
        "profiling/json_values.py",
        "profiling/schema.py",
        "profiling/measure",
    ),
    "packager": (
        "__init__.py",
        "bundle_files.py",
        "manifest.py",
        "manifest_checks.py",
        "manifest_reader.py",
        "records.py",
        "strict_fields.py",
    ),
    "device_profiles": ("__init__.py", "target.py", "profile.py", "detect.py", "roofline.py", "data"),
    "cpu_kernels": ("__init__.py", "abi.py", "cpu_flags.py", "estimates.py", "probe/__init__.py", "probe/words.py"),
}


def unpack_wheel(path: Path, destination: Path) -> int:
    """Unpack the device's part of a wheel and return the bytes written; SiteError for a damaged or unsafe file."""
    written = 0
    try:
        with zipfile.ZipFile(path) as wheel:
            for entry in wheel.infolist():
                target = choose_path(entry.filename)
                if entry.is_dir() or target is None:
                    continue
                written += entry.file_size
                if written > MAX_SITE_BYTES:
                    raise SiteError(f"{path.name} unpacks to more than {MAX_SITE_BYTES >> 20} MiB")
                file = destination.joinpath(*target.parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(entry) as source, open(file, "xb") as output:
                    shutil.copyfileobj(source, output, _CHUNK)
                file.chmod(0o644)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SiteError(f"{path} is damaged: {error}", remedy="delete it and try again") from None
    except FileExistsError as error:
        raise SiteError(
            f"two wheels hold the same file {Path(error.filename).name}, the second is {path.name}"
        ) from None
    return written


def choose_path(name: str) -> PurePosixPath | None:
    """Where a wheel's file goes in the site folder, or None for one that the device does not need."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or not parts or ".." in parts or ":" in parts[0]:
        raise SiteError(f"the wheel holds the unsafe path {name[:80]!r}", remedy="do not use this wheel")
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
            return None
        parts = parts[2:]
    if parts[0].endswith(".dist-info"):
        in_licenses = len(parts) > 2 and parts[1] == "licenses"
        kept = in_licenses or (len(parts) == 2 and parts[1].upper().startswith(_KEPT_INFO))
        return PurePosixPath(*parts) if kept else None
    path = PurePosixPath(*parts)
    if _SKIPPED_FOLDERS.intersection(parts[1:-1]) or path.suffix in _SKIPPED_SUFFIXES:
        return None
    return path


def copy_own_packages(destination: Path) -> int:
    """Copy the device's part of this installation and return the bytes; works from a wheel and from a working tree."""
    written = 0
    for package, parts in OWN_PACKAGES.items():
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SiteError(f"the package {package} is not installed", remedy="install edgeawq again")
        root = Path(spec.submodule_search_locations[0])
        for part in parts:
            written += _copy(root / part, destination / package / part)
    return written


def _copy(source: Path, target: Path) -> int:
    if source.is_dir():
        names = sorted(entry.name for entry in source.iterdir())
        return sum(_copy(source / name, target / name) for name in names if name != "__pycache__")
    if not source.is_file() or target.suffix in _SKIPPED_SUFFIXES:
        return 0
    content = source.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(0o644)
    return len(content)
