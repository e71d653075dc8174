"""Build kernel objects, each in a process of its own, and keep them: the same source and target give the same file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from device_profiles.target import Target
from edgeawq.errors import KernelError, MissingExtraError

KINDS = ("decoder", "kernels", "linear", "probe")
PROBE_FOLDER = "probe"  # its files are in no other kind of object
WEIGHT_BITS = (2, 3, 4, 8)
USUAL_BITS = (4, 8)  # body and head of nearly every model


def cache_folder() -> Path:
    """Where built objects are kept: $EDGEAWQ_CACHE or ~/.cache/edgeawq."""
    root = os.environ.get("EDGEAWQ_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "edgeawq") / "kernels"


def _source_key(target: Target, isa: str, kind: str, bits: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"{target} {isa} {kind} {bits}".encode())
    for package in ("numba", "llvmlite"):
        try:
            digest.update(f"{package} {importlib.metadata.version(package)}".encode())
        except importlib.metadata.PackageNotFoundError:
            raise MissingExtraError(package, "host") from None
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        if kind != "probe" and source.relative_to(folder).parts[0] == PROBE_FOLDER:
            continue
        digest.update(source.relative_to(folder).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def build(target: Target, isa: str, kind: str = "decoder", bits: Sequence[int] = USUAL_BITS) -> tuple[bytes, str]:
    """(ELF object, assembly) of the kernels for a target; built once and kept in the cache.

    isa: an instruction set's name, or NAME_portable for its meaning in plain LLVM. bits: widths of the weights that
    the kernels take; each one makes the object and the time to build it larger.
    Raises KernelError when the compiler refuses.
    """
    if kind not in KINDS:
        raise KernelError(f"unknown kind of object {kind!r}", remedy=f"known: {', '.join(KINDS)}")
    if not bits or not set(bits) <= set(WEIGHT_BITS):
        raise KernelError(f"there are no kernels for weights of {bits} bits", remedy=f"known: {WEIGHT_BITS}")
    widths = tuple(sorted(set(bits)))
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{isa}-{kind}-{_source_key(target, isa, kind, widths)[:32]}.o"
    listing = path.with_suffix(".s")
    if not (path.exists() and listing.exists()):
        _compile(target, isa, kind, widths, path, listing)
    for file in (path, listing):
        with suppress(OSError):
            os.utime(file)  # used now: `edgeawq gc --cache` goes by it
    return path.read_bytes(), listing.read_text()


def _compile(target: Target, isa: str, kind: str, bits: tuple[int, ...], path: Path, listing: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
        new_object, new_listing = Path(scratch, "object"), Path(scratch, "listing")
        command = [
            sys.executable,
            "-m",
            "cpu_kernels.worker",
            str(target),
            isa,
            kind,
            ",".join(str(width) for width in bits),
            str(new_object),
            str(new_listing),
        ]
        root = str(Path(__file__).resolve().parent.parent)
        search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search_path}, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            what, remedy = (lines[0], lines[1]) if done.returncode == 1 and len(lines) == 2 else (lines[-1], "")
            raise KernelError(
                f"the kernels for {target.cpu} ({isa}) could not be built: {what}",
                remedy=remedy or "check the profile's triple, cpu and features",
            )
        # the listing first: an object in place means that both are there
        os.replace(new_listing, listing)
        os.replace(new_object, path)


def build_object(target: Target, isa: str, bits: Sequence[int] = USUAL_BITS) -> bytes:
    """The decoder's object for a target: what a bundle carries."""
    return build(target, isa, bits=bits)[0]


def build_probe(target: Target, isa: str) -> bytes:
    """The object that measures a CPU and its memory (`cpu_kernels.probe`)."""
    return build(target, isa, "probe")[0]


def build_assembly(target: Target, isa: str, kind: str = "kernels") -> str:
    """The assembly of an object, for tests that look at the instructions."""
    return build(target, isa, kind)[1]
