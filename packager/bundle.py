"""Write a bundle so that it is there as a whole or not at all.

Everything goes into a hidden folder beside the target, is flushed to the disk and then renamed. A reader never sees
a half-written bundle, and an interrupted writer leaves only a hidden folder that the next one removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeawq.errors import BundleError
from packager.bundle_files import open_bundle_file
from packager.manifest import ALIGNMENT, FORMAT, MANIFEST_NAME, FileEntry, Manifest, TensorEntry, dump_manifest
from packager.manifest_reader import parse_manifest, read_manifest

WEIGHTS_NAME = "weights.bin"
GOLDEN_NAME = "golden.json"
Bytes = npt.NDArray[np.uint8]


class BundleWriter:
    """A bundle in the making: `add_tensor` and `add_file`, then `finish` and `publish`. Use as a context manager.

    `folder` is the hidden folder it grows in; after `finish` that folder is a complete bundle.
    """

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        self._target = target.absolute()
        self._overwrite = overwrite
        self._files: list[FileEntry] = []
        self._tensors: list[TensorEntry] = []
        self._offset = 0
        self._digest = hashlib.sha256()
        check_target(self._target, overwrite=overwrite)

    def __enter__(self) -> BundleWriter:
        with _explain(self._target):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self._target)
            prefix = _staging_prefix(self._target)
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._target.parent))
            # The lock says "in use" to another writer's sweep; it ends with this process, however it ends.
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._weights = open(self.folder / WEIGHTS_NAME, "xb")  # noqa: SIM115 - closed in finish or __exit__
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.close()
        os.close(self._lock)
        shutil.rmtree(self.folder, ignore_errors=True)  # published: there is nothing left under this name

    def reserve(self, nbytes: int) -> None:
        """Raise BundleError now rather than half-way where the disk has no room for `nbytes`."""
        with _explain(self._target):
            free = shutil.disk_usage(self.folder).free
        if free < nbytes:
            raise BundleError(
                f"the bundle {self._target} needs {nbytes / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free",
                remedy="make room on that disk or choose another place with -o",
            )

    def add_tensor(self, name: str, chunks: Iterable[Bytes], **fields: Any) -> TensorEntry:
        """Append a tensor to weights.bin from its consecutive chunks; `fields` are those of TensorEntry."""
        with _explain(self._target):
            self._write(bytes(-self._offset % ALIGNMENT))
            start = self._offset
            for chunk in chunks:
                self._write(np.ascontiguousarray(chunk).data.cast("B"))
        entry = TensorEntry(name=name, offset=start, nbytes=self._offset - start, **fields)
        self._tensors.append(entry)
        return entry

    def add_file(self, path: str, role: str, data: bytes) -> FileEntry:
        """Write one more file of the bundle."""
        with _explain(self._target):
            entry = _write_file(self.folder, path, role, data)
        self._files.append(entry)
        return entry

    def finish(self, manifest: Manifest) -> Manifest:
        """Complete `manifest` with the files and tensors, check it as a reader would, and write it."""
        with _explain(self._target):
            # Readers may use 64-byte loads to the end of the last tensor: the file ends on a full line, too.
            self._write(bytes(-self._offset % ALIGNMENT))
            self._weights.flush()
            os.fchmod(self._weights.fileno(), 0o644)
            os.fsync(self._weights.fileno())
            self._weights.close()
            weights = FileEntry(WEIGHTS_NAME, self._offset, self._digest.hexdigest(), "weights")
            manifest = replace(manifest, files=(weights, *self._files), tensors=tuple(self._tensors))
            data = dump_manifest(manifest)
            parse_manifest(data)
            _write_file(self.folder, MANIFEST_NAME, "", data)
        return manifest

    def publish(self) -> None:
        """Flush the folder to the disk and give it its name, replacing an earlier bundle if that was allowed."""
        with _explain(self._target):
            for parent, _, _ in os.walk(self.folder, topdown=False):
                os.chmod(parent, 0o755)
                _fsync_folder(Path(parent))
            check_target(self._target, overwrite=self._overwrite)
            _swap(self.folder, self._target)
            _fsync_folder(self._target.parent)

    def _write(self, data: bytes | memoryview) -> None:
        self._weights.write(data)
        self._digest.update(data)
        self._offset += len(data)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise BundleError where `target` cannot become a bundle: it exists, and is none or may not be replaced."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target} exists and is not a folder", remedy="choose another name with -o")
    if not any(target.iterdir()):
        return
    if not is_bundle(target):
        raise BundleError(
            f"{target} exists and is not a bundle; it is not touched", remedy="choose another name with -o"
        )
    if not overwrite:
        raise BundleError(f"the bundle {target} exists", remedy="add --overwrite to replace it, or choose another -o")


def is_bundle(folder: Path) -> bool:
    """Whether `folder` has a manifest that names the bundle format, whatever its version and state."""
    try:
        with open_bundle_file(folder, MANIFEST_NAME) as file:
            document = json.loads(file.read(64 << 20))
    except (BundleError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def add_golden(folder: Path, golden: Mapping[str, Any]) -> Manifest:
    """Put `golden` (a prompt's tokens and the answer's) into the bundle in `folder`; replaces an earlier one.

    At every moment the manifest on disk describes files that are there: first it forgets the old answer, then the
    new one is written, then the manifest names it.
    """
    manifest = read_manifest(folder)
    others = tuple(entry for entry in manifest.files if entry.role != "golden")
    with _explain(folder):
        if len(others) != len(manifest.files):
            _replace_file(folder, MANIFEST_NAME, "", dump_manifest(replace(manifest, files=others)))
        entry = _replace_file(folder, GOLDEN_NAME, "golden", dump_json(golden))
        manifest = replace(manifest, files=(*others, entry))
        data = dump_manifest(manifest)
        parse_manifest(data)
        _replace_file(folder, MANIFEST_NAME, "", data)
    return manifest


def dump_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: the same value gives the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _write_file(folder: Path, path: str, role: str, data: bytes) -> FileEntry:
    """Write and flush a new file below `folder`."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest(), role)


def _replace_file(folder: Path, path: str, role: str, data: bytes) -> FileEntry:
    temporary = f"{path}.tmp"
    (folder / temporary).unlink(missing_ok=True)
    entry = _write_file(folder, temporary, role, data)
    os.replace(folder / temporary, folder / path)
    _fsync_folder(folder)
    return replace(entry, path=path)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    """Give `new` the name `target`; an earlier bundle then has the name `new`, or is gone."""
    if not target.is_dir() or not any(target.iterdir()):
        os.replace(new, target)
        return
    if _exchange(new, target):
        return
    # Without an atomic exchange the old one steps aside first, because a folder cannot replace a full one.
    aside = new.with_name(new.name + ".old")
    os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically (Linux' renameat2); False where system or file system cannot."""
    at_current_folder, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if rename(at_current_folder, os.fsencode(first), at_current_folder, os.fsencode(second), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sweep(target: Path) -> None:
    """Remove hidden folders that an interrupted writer of the same target left; those in use are locked."""
    for folder in list(target.parent.iterdir()):
        if folder.name.startswith(_staging_prefix(target)) and folder.is_dir() and not _is_locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _staging_prefix(target: Path) -> str:
    return f".{target.name}.partial-"


@contextmanager
def _explain(target: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise BundleError(
            f"cannot write the bundle {target}: {error.strerror or error}",
            remedy="make room on that disk or choose another place with -o" if full else "",
        ) from None
