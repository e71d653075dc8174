"""From whatever a user names to a bundle for one device: quantize and pack what is missing, and keep the results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgeawq
from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from device_profiles.profile import DeviceProfile

# The source that decides what comes out: a change in it makes earlier results invalid.
QUANTIZE_SOURCES = ("edgeawq.quantize", "edgeawq.checkpoints")
PACK_SOURCES = ("packager", "cpu_kernels", "device_profiles", "edgeawq.checkpoints")
WORKING_SUFFIX = ".working"


def find_bundle(reference: str, profile_name: str) -> Path | None:
    """Return the finished bundle for `reference`: the one it names, or one in the cache; None when it must be built.

    Nothing heavy is imported, and nothing is built. UsageError when `reference` names nothing.
    """
    path = Path(reference).expanduser()
    if is_bundle(path):
        return path
    from device_profiles.detect import find_profile

    bundle = _bundle_path(_fingerprint(reference), reference, find_profile(profile_name))
    if bundle.is_dir():
        return _mark_used(bundle)
    checkpoint = _checkpoint_path(reference)
    if checkpoint.is_dir():
        _mark_used(checkpoint)
        bundle = _bundle_path(_fingerprint(str(checkpoint)), reference, find_profile(profile_name))
        if bundle.is_dir():
            return _mark_used(bundle)
    return None


def build_bundle(reference: str, profile_name: str, console: Console, *, quiet: bool = False) -> Path:
    """Return a bundle of `reference` for a device profile, quantizing and packing what is not in the cache.

    reference: a float model, a quantized checkpoint, or a bundle, as `edgeawq push` takes it.
    """
    found = find_bundle(reference, profile_name)
    if found is not None:
        return found
    from device_profiles.detect import find_profile
    from edgeawq.checkpoints.open_model import open_model

    profile = find_profile(profile_name)
    checkpoint = Path(reference).expanduser()
    if open_model(reference).quantization is None:
        checkpoint = _checkpoint_path(reference)
        if not checkpoint.is_dir():
            _say(console, quiet, f"quantizing {reference} (once; the result is kept in {checkpoint})")
            _build(checkpoint, lambda folder: _quantize(reference, folder, console, quiet))
    bundle = _bundle_path(_fingerprint(str(checkpoint)), reference, profile)
    if not bundle.is_dir():
        _build(bundle, lambda folder: _pack(str(checkpoint), profile, folder, console, quiet))
    return bundle


def is_bundle(path: Path) -> bool:
    """True when the folder `path` is a bundle (its manifest is checked later, by who uses it)."""
    from packager.manifest import MANIFEST_NAME

    return (path / MANIFEST_NAME).is_file() and not (path / "config.json").exists()


def fingerprint(path: Path) -> str:
    """Return the SHA-256 over names and contents of a file or of all files in a folder.

    Large files are hashed once; as long as size, time stamp and inode stay the same, the result is remembered.
    """
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    if not files:
        raise UsageError(f"{path} holds no files")
    memory = _HashMemory()
    state = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        state.update(f"{name}\0{memory.hash(file)}\n".encode())
    memory.save()
    return state.hexdigest()


def _fingerprint(reference: str) -> str:
    return fingerprint(_locate(reference))


def _locate(reference: str) -> Path:
    """Return where the files of a model reference lie; a hub model is downloaded if it is not here yet."""
    from edgeawq.checkpoints.embedded_model import EMBEDDED_SCHEME, find_embedded_file
    from edgeawq.checkpoints.open_model import open_model

    if reference.startswith(EMBEDDED_SCHEME):
        return find_embedded_file()
    path = Path(reference).expanduser()
    if path.exists():
        return path.resolve()
    from edgeawq.checkpoints.hub import HUB_ID, download_model

    if not HUB_ID.fullmatch(reference):
        open_model(reference)  # raises, and says what was probably meant
    return download_model(reference)


def _checkpoint_path(reference: str) -> Path:
    """Return where the checkpoint of a float model, quantized with the default settings, is kept.""" ""
    key = _key(_fingerprint(reference), QUANTIZE_SOURCES)
    # The folder's name becomes the model's, so the key is its parent's.
    return _kept("checkpoints") / key / f"{_slug(reference)}-awq"


def _bundle_path(content: str, reference: str, profile: DeviceProfile) -> Path:
    key = _key(f"{content} {profile.target} {profile.cores}", PACK_SOURCES)
    return _kept("bundles") / key / f"{_slug(reference)}-{profile.name}.edgeawq"


def _key(content: str, sources: tuple[str, ...]) -> str:
    from edgeawq.deploy.site import hash_sources

    text = f"{edgeawq.__version__} {hash_sources(sources)} {content}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _slug(reference: str) -> str:
    name = reference.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "model"


def _kept(name: str) -> Path:
    from edgeawq.deploy.cache import cache_folder

    return cache_folder(name)


def _mark_used(kept: Path) -> Path:
    """`kept` itself; `edgeawq gc --cache` goes by the time of its folder."""
    with suppress(OSError):  # it may be another user's
        os.utime(kept.parent)
    return kept


def _build(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make `target`, whose parent appears with it, and only when it is complete."""
    keyed = target.parent
    working = Path(tempfile.mkdtemp(prefix=f".{keyed.name}.", suffix=WORKING_SUFFIX, dir=keyed.parent))
    try:
        write(working / target.name)
        try:
            os.rename(working, keyed)
        except OSError:
            if not target.is_dir():  # another process may have been quicker
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _quantize(reference: str, folder: Path, console: Console, quiet: bool) -> None:
    """Run `edgeawq quantize` in a process of its own: what torch has taken is free again before the packing begins.

    The command says itself what went wrong; this one then ends with the same exit code.
    """
    command = [sys.executable, "-m", "edgeawq", "quantize", reference, "-o", str(folder), "--as-a-step"]
    root = str(Path(edgeawq.__file__).resolve().parent.parent)
    search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL if quiet else sys.stderr,
        stderr=subprocess.PIPE if quiet else None,
        env={**os.environ, "PYTHONPATH": search_path},
        check=False,
    )
    if done.returncode:
        sys.stderr.write((done.stderr or b"").decode("utf-8", "replace"))
        raise click.exceptions.Exit(done.returncode if done.returncode > 0 else 1)


def _pack(checkpoint: str, profile: DeviceProfile, folder: Path, console: Console, quiet: bool) -> None:
    from edgeawq.cli.pipeline_pack import pack_bundle

    summary = pack_bundle(checkpoint, profile, folder, console, quiet=quiet)
    for note in summary.notes:
        _say(console, quiet, f"note: {note}")


def _say(console: Console, quiet: bool, text: str) -> None:
    if not quiet:
        console.print(text, highlight=False, soft_wrap=True, markup=False)


class _HashMemory:
    """SHA-256 of large files by path, size, time stamp and inode, in the cache folder."""

    SMALL_BYTES = 1 << 20
    MAX_BYTES = 16 << 20

    def __init__(self) -> None:
        self._path = _kept("hashes") / "files.json"
        self._known: dict[str, Any] = {}
        self._changed = False
        try:
            if self._path.stat().st_size <= self.MAX_BYTES:
                loaded = json.loads(self._path.read_text())
                self._known = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            self._known = {}  # only memory: everything is hashed again

    def hash(self, file: Path) -> str:
        found = file.stat()
        mark = [found.st_size, found.st_mtime_ns, found.st_ino]
        name = str(file.resolve())
        known = self._known.get(name)
        if isinstance(known, list) and known[:3] == mark and len(known) == 4:
            return str(known[3])
        state = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
        if found.st_size > self.SMALL_BYTES:
            self._known[name] = [*mark, state.hexdigest()]
            self._changed = True
        return state.hexdigest()

    def save(self) -> None:
        if not self._changed:
            return
        handle, temporary = tempfile.mkstemp(dir=self._path.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(self._known, stream)
        os.replace(temporary, self._path)
