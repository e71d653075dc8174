"""Wheels for a device: which ones, from where, and the lock that makes the next time the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeawq.errors import SiteError
from packager.bundle import dump_json

LOCK_NAME = "lock.json"
# Exactly what the runtime and the chat import, dependencies of dependencies included; pip adds nothing to it.
# (tokenizers asks for huggingface_hub, which it needs only to download.)
REQUIREMENTS = (
    "click>=8.1",
    "jinja2>=3.1",
    "llvmlite>=0.44",
    "markdown-it-py>=3.0",
    "markupsafe>=2.1",
    "mdurl>=0.1",
    "numpy>=1.24",
    "prompt_toolkit>=3.0.40",
    "pygments>=2.17",
    "rich>=13.7",
    "tokenizers>=0.20",
    "wcwidth>=0.2.13",
)
REQUIREMENTS_BEFORE_3_11 = ("tomli>=2.0",)
# The C library of the oldest system that is supported; wheels for older ones run there, too.
GLIBC = range(28, 16, -1)
MAX_WHEEL_BYTES = 1 << 30


@dataclass(frozen=True)
class Wheel:
    """One wheel file."""

    path: Path
    name: str
    version: str


def list_requirements(python_version: tuple[int, int]) -> list[str]:
    """What pip is asked for."""
    return [*REQUIREMENTS, *(REQUIREMENTS_BEFORE_3_11 if tuple(python_version) < (3, 11) else ())]


def list_platforms(machine: str) -> list[str]:
    """Platform tags that a device of this machine takes, best first."""
    return [*(f"manylinux_2_{minor}_{machine}" for minor in GLIBC), f"manylinux2014_{machine}"]


def download_wheels(python_version: tuple[int, int], machine: str, folder: Path, *, source: Path | None = None) -> None:
    """Fill `folder` with the wheels for a device, from the package index or from the folder `source`."""
    major, minor = python_version
    command = [sys.executable, "-m", "pip", "download", "--dest", str(folder), "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2", "--timeout=20"]
    command += ["--implementation=cp", f"--python-version={major}.{minor}"]
    command += [f"--abi={abi}" for abi in (f"cp{major}{minor}", "abi3", "none")]
    command += [f"--platform={platform}" for platform in list_platforms(machine)]
    if source is not None:
        if not source.is_dir():
            raise SiteError(f"there is no folder {source}", remedy="give a folder with wheels")
        command += ["--no-index", f"--find-links={source.absolute()}"]
    environment = {**os.environ, "PIP_REQUIRE_VIRTUALENV": "0"}
    done = subprocess.run(
        [*command, *list_requirements(python_version)],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise _explain(done.stderr + done.stdout, f"Python {major}.{minor} on {machine}", source)


def read_wheels(folder: Path) -> list[Wheel]:
    """The wheels in `folder`, sorted by name."""
    wheels = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if path.stat().st_size > MAX_WHEEL_BYTES:
            raise SiteError(f"{path} is larger than {MAX_WHEEL_BYTES >> 20} MiB", remedy="that is not one of ours")
        wheels.append(Wheel(path, name.replace("_", "-").lower(), version))
    return wheels


def write_lock(folder: Path, requirements: Sequence[str]) -> None:
    """Record what was asked for, and the hash of every wheel that came."""
    wheels = {path.name: _hash(path) for path in sorted(folder.glob("*.whl"))}
    (folder / LOCK_NAME).write_bytes(dump_json({"requirements": list(requirements), "wheels": wheels}))


def read_lock(folder: Path, requirements: Sequence[str]) -> list[Wheel] | None:
    """The wheels that the lock names, or None where it is for something else or a wheel is missing or damaged."""
    try:
        lock = json.loads((folder / LOCK_NAME).read_text(encoding="utf-8"))
        if lock["requirements"] != list(requirements):
            return None
        if {path.name: _hash(path) for path in folder.glob("*.whl")} != lock["wheels"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_wheels(folder)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _explain(output: str, device: str, source: Path | None) -> SiteError:
    """What pip's words mean for somebody who wants to push."""
    if "No module named pip" in output:
        return SiteError(
            f"pip is not installed in {sys.executable}; it collects the device's wheels",
            remedy=f"run {sys.executable} -m ensurepip",
        )
    missing = re.search(
        r"No matching distribution found for (\S+)|Could not find a version that satisfies the requirement (\S+)",
        output,
    )
    package = (missing.group(1) or missing.group(2)) if missing else ""
    offline = "by running once with a network, or give a folder of wheels with --wheels DIR"
    if re.search(r"NewConnectionError|NameResolutionError|Temporary failure|ConnectTimeout|Max retries", output):
        return SiteError(
            f"the package index cannot be reached, and {package or 'a wheel'} for {device} is not in the cache",
            remedy=f"fill the cache {offline}",
        )
    if package and source is not None:
        return SiteError(f"{source} has no wheel of {package} for {device}", remedy="add it to that folder")
    if package:
        return SiteError(
            f"there is no wheel of {package} for {device}",
            remedy="use a Python version that the package supports (3.11 to 3.13 have all of them), or --wheels DIR",
        )
    last = [line.strip() for line in output.splitlines() if line.strip()]
    return SiteError(
        f"pip could not collect the wheels for {device}: {last[-1][:300] if last else 'it gave no reason'}",
        remedy=f"try again; fill the cache {offline}",
    )
