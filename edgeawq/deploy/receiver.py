"""The receiver: the part of a push that runs on the device.

The host sends this file over standard input to `python3` on the device; nothing is installed for it. It needs
Python 3.10 or later and the standard library only, and imports nothing of edgeawq. It speaks the protocol that
docs/design/0002-push-protocol.md describes: requests are lines of JSON on standard input, some followed by bytes;
answers and events are lines of JSON on standard output. Every size is bounded before it is used, no path of the
host's is used before it was checked, and whatever breaks off, `current` points at a whole release that has
passed its health check.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

MAGIC = "EDGEAWQ-RECEIVER"
PROTOCOL = 1
MIN_PYTHON = (3, 10)

RELEASE_FORMAT = "edgeawq-release"
RELEASE_FORMAT_VERSION = 1
MAX_LINE_BYTES = 64 << 10
MAX_RELEASE_BYTES = 32 << 20
MAX_FILES = 100_000
MAX_FILE_BYTES = 1 << 40
MAX_TOTAL_BYTES = 1 << 42
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 200
MAX_RELEASES = 1000
MAX_HISTORY = 100
MAX_LOG_BYTES = 1 << 20
MAX_OUTPUT_BYTES = 256 << 10
BLOCK_BYTES = 1 << 20
SMALL_FILE_BYTES = 4 << 20  # smaller files are made durable in batches, and are sent anew after a cut
BATCH_FILES = 128
BATCH_BYTES = 32 << 20
WRITEBACK_BYTES = 32 << 20
SPARE_BYTES = 16 << 20  # left free on the device's disk
IDLE_TIMEOUT_S = 180.0
ALIVE_EVERY_S = 5.0

HASH = re.compile(r"[0-9a-f]{64}")
RELEASE_ID = re.compile(r"[0-9a-f]{16}")

T = TypeVar("T")


class Refusal(Exception):
    """A request that is not carried out; the host makes an error message of it."""

    def __init__(self, code: str, what: str, **details: Any) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.details = details


class HostGone(Exception):
    """The host has closed the connection or has been silent for too long."""


class Wire:
    """Standard input and output as lines of JSON and blocks of bytes."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer
        self.buffer = bytearray()
        self.block = bytearray(BLOCK_BYTES)
        self.last_sent = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.writer, data) :]
        except OSError as error:
            raise HostGone(str(error)) from error
        self.last_sent = time.monotonic()

    def say_alive(self) -> None:
        """Send a sign of life if nothing was sent for a while: the host gives up a silent device."""
        if time.monotonic() - self.last_sent >= ALIVE_EVERY_S:
            self.send({"event": "alive"})

    def read_line(self) -> dict[str, Any]:
        while True:
            end = self.buffer.find(b"\n")
            if end >= 0:
                break
            if len(self.buffer) > MAX_LINE_BYTES:
                raise Refusal("protocol", f"a request is longer than {MAX_LINE_BYTES} bytes", fatal=True)
            self.buffer += self._receive(MAX_LINE_BYTES)
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Refusal("protocol", "a request is not valid JSON", fatal=True) from None
        if not isinstance(message, dict):
            raise Refusal("protocol", "a request is not a JSON object", fatal=True)
        return message

    def read_blocks(self, size: int) -> Iterator[memoryview]:
        """Yield exactly `size` bytes in blocks; a block is valid until the next one is asked for."""
        if self.buffer and size:
            head = bytes(self.buffer[:size])
            del self.buffer[: len(head)]
            size -= len(head)
            yield memoryview(head)
        view = memoryview(self.block)
        while size:
            filled = 0
            wanted = min(size, BLOCK_BYTES)
            while filled < wanted:
                self._wait()
                count = os.readv(self.reader, [view[filled:wanted]])
                if not count:
                    raise HostGone("the connection ended in the middle of a file")
                filled += count
            size -= wanted
            self.say_alive()
            yield view[:wanted]

    def read_exactly(self, size: int) -> bytes:
        return b"".join(bytes(block) for block in self.read_blocks(size))

    def _wait(self) -> None:
        if not select.select([self.reader], [], [], IDLE_TIMEOUT_S)[0]:
            raise HostGone(f"the host was silent for {IDLE_TIMEOUT_S:.0f} s")

    def _receive(self, size: int) -> bytes:
        self._wait()
        data = os.read(self.reader, size)
        if not data:
            raise HostGone("the connection has ended")
        return data


# ---------------------------------------------------------------- small file operations


def fsync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes) -> None:
    """Write a small file so that, after a power cut too, it is wholly the old or wholly the new one."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    fsync_folder(os.path.dirname(path))


def read_json(path: str, limit: int) -> dict[str, Any]:
    """Return the JSON object in `path`; an empty one when the file is not there or is not JSON."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
        found = json.loads(data) if len(data) <= limit else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_text(value: Any, limit: int) -> bool:
    return isinstance(value, str) and len(value.encode("utf-8", "replace")) <= limit and value.isprintable()


def is_count(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


# ---------------------------------------------------------------- what a release may be


def check_path(path: Any) -> str:
    """Return `path` if it is a relative path below bundle/ or site/ that can mean nothing else."""
    if not isinstance(path, str) or not path or len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES:
        raise Refusal("manifest", f"a path in the release is empty or longer than {MAX_PATH_BYTES} bytes")
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts)
    if bad or not path.isprintable() or "\\" in path or len(parts) < 2 or parts[0] not in ("bundle", "site"):
        raise Refusal("manifest", f"the release names a path that is not allowed: {path[:200]!r}")
    return path


def parse_release(data: bytes) -> dict[str, Any]:
    """Return the release description in `data` after every field was checked."""
    try:
        release = json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal("manifest", "the release description is not valid JSON") from None
    if not isinstance(release, dict) or release.get("format") != RELEASE_FORMAT:
        raise Refusal("manifest", f"the release description is not of the format {RELEASE_FORMAT!r}")
    version = release.get("format_version")
    if not is_count(version, RELEASE_FORMAT_VERSION) or version != RELEASE_FORMAT_VERSION:
        raise Refusal(
            "manifest", f"release format {release.get('format_version')!r} is not known, only {RELEASE_FORMAT_VERSION}"
        )
    for key in ("name", "profile"):
        if not is_text(release.get(key), MAX_NAME_BYTES):
            raise Refusal("manifest", f"the release's {key!r} is missing or too long")
    requires = release.get("requires")
    if not isinstance(requires, dict) or not all(is_text(requires.get(key), 50) for key in ("machine", "python")):
        raise Refusal("manifest", "the release does not say which machine and Python it requires")
    files = release.get("files")
    if not isinstance(files, list) or not files or len(files) > MAX_FILES:
        raise Refusal("manifest", f"the release has no files, or more than {MAX_FILES}")
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    folders: set[str] = set()
    total = 0
    for entry in files:
        if not isinstance(entry, dict):
            raise Refusal("manifest", "a file of the release is not described by an object")
        path = check_path(entry.get("path"))
        digest, size = entry.get("sha256"), entry.get("size")
        if (
            not isinstance(digest, str)
            or not HASH.fullmatch(digest)
            or size is None
            or not is_count(size, MAX_FILE_BYTES)
        ):
            raise Refusal("manifest", f"{path!r} has no valid SHA-256 or size")
        if path in seen or sizes.setdefault(digest, size) != size:
            raise Refusal("manifest", f"{path!r} is described twice, or one hash has two sizes")
        seen.add(path)
        parts = path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        total += size
    if seen & folders:
        raise Refusal("manifest", f"{sorted(seen & folders)[0]!r} is a file and a folder at once")
    if total > MAX_TOTAL_BYTES:
        raise Refusal("manifest", f"the release is larger than {MAX_TOTAL_BYTES} bytes")
    return release


def check_requirements(release: dict[str, Any]) -> None:
    """Refuse a release that was made for another machine or another Python."""
    machine, python = platform.machine(), f"{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = release["requires"]
    if wanted["machine"] != machine:
        raise Refusal("unfit", f"the release is for {wanted['machine']}, this device is {machine}")
    if struct.calcsize("P") != 8:
        raise Refusal("unfit", "this device's Python is a 32-bit program; a 64-bit system is needed")
    if wanted["python"] != python:
        raise Refusal("unfit", f"the release is for Python {wanted['python']}, this device has {python}")


# ---------------------------------------------------------------- the device lock


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return stream.read(64).strip()
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when process `pid` began, in the kernel's ticks; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read(4096).rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Lock:
    """The device lock: the folder `lock`, which names its owner. Changed only under flock(2) on `lock.guard`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder = os.path.join(root, "lock")
        self.owner_file = os.path.join(self.folder, "owner.json")
        self.token = 0

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        descriptor = os.open(os.path.join(self.root, "lock.guard"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read_owner(self) -> dict[str, Any] | None:
        if not os.path.isdir(self.folder):
            return None
        return read_json(self.owner_file, MAX_LINE_BYTES)

    def describe(self) -> dict[str, Any] | None:
        """Return who holds the lock, since when, and whether that process is still there; None when it is free."""
        owner = self.read_owner()
        if owner is None:
            return None
        pid = owner.get("pid")
        same_boot = owner.get("boot_id") == boot_id()
        alive = same_boot and isinstance(pid, int) and process_start(pid) == owner.get("pid_start") != ""
        age_s = max(0.0, time.time() - float(owner.get("time") or 0.0))
        return {
            "owner": str(owner.get("owner", "?"))[:200],
            "token": owner.get("token"),
            "age_s": age_s,
            "alive": alive,
        }

    def take(self, owner: str, *, force: bool, wait_s: float) -> dict[str, Any] | None:
        """Take the lock and return what stale or broken lock was in the way, if any."""
        deadline = time.monotonic() + wait_s
        while True:
            with self.guard():
                holder = self.describe()
                if holder is None or force or not holder["alive"]:
                    self._write_owner(owner)
                    return holder
            if time.monotonic() >= deadline:
                raise Refusal("locked", f"the device is locked by {holder['owner']}", lock=holder)
            time.sleep(0.2)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Refuse to go on when the lock is no longer ours; nobody can take it inside the block."""
        with self.guard():
            owner = self.read_owner()
            if not self.token or owner is None or owner.get("token") != self.token:
                raise Refusal("lock-lost", "this push has lost the device lock: someone has broken it")
            yield

    def release(self) -> None:
        if not self.token:
            return
        with self.guard():
            owner = self.read_owner()
            if owner is not None and owner.get("token") == self.token:
                shutil.rmtree(self.folder)
        self.token = 0

    def _write_owner(self, owner: str) -> None:
        counter = os.path.join(self.root, "lock.token")
        token = int(read_json(counter, MAX_LINE_BYTES).get("token") or 0) + 1
        write_file(counter, json.dumps({"token": token}).encode())
        os.makedirs(self.folder, exist_ok=True)
        pid = os.getpid()
        description = {
            "owner": owner,
            "time": time.time(),
            "pid": pid,
            "pid_start": process_start(pid),
            "boot_id": boot_id(),
            "token": token,
        }
        write_file(self.owner_file, json.dumps(description).encode())
        self.token = token


# ---------------------------------------------------------------- the receiver


class Receiver:
    """One session: it holds what the host has planned and checked so far."""

    def __init__(self, wire: Wire, root: str) -> None:
        self.wire = wire
        self.root = root
        self.lock = Lock(root)
        self.owner = ""
        self.release: dict[str, Any] | None = None
        self.release_data = b""
        self.sizes: dict[str, int] = {}  # of the objects that the host may send
        self.partial: dict[str, tuple[int, Any]] = {}  # hash → (length on disk, hash state)
        self.batch: list[tuple[int, str, str, int]] = []  # (descriptor, temporary path, hash, size)
        self.batch_bytes = 0
        self.stored_files = 0
        self.stored_bytes = 0
        self.touched: set[str] = set()
        self.checked: set[str] = set()
        self.pool = ThreadPoolExecutor(max_workers=8)
        self.operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "lock": self.take_lock,
            "unlock": self.drop_lock,
            "plan": self.plan,
            "put": self.put,
            "flush": self.flush,
            "commit": self.commit,
            "check": self.check,
            "switch": self.switch,
            "verify": self.verify,
            "status": self.status,
            "gc": self.gc,
        }

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def object_path(self, digest: str) -> str:
        return self.path("store", digest[:2], digest)

    def serve(self) -> None:
        """Answer requests until the host says bye or goes away."""
        greeting = {"ok": True, "protocol": PROTOCOL, "root": self.root, "machine": platform.machine()}
        greeting["python"] = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
        greeting["executable"] = sys.executable
        self.wire.send({**greeting, "magic": MAGIC})
        while True:
            request: dict[str, Any] = {}
            try:
                request = self.wire.read_line()
                operation = request.get("op")
                if operation == "bye":
                    self.wire.send({"ok": True})
                    return
                handler = self.operations.get(operation) if isinstance(operation, str) else None
                if handler is None:
                    raise Refusal("protocol", f"the operation {str(operation)[:50]!r} is not known", fatal=True)
                answer = handler(request)
            except Refusal as refusal:
                answer = {"ok": False, "code": refusal.code, "what": refusal.what, **refusal.details}
            except OSError as error:
                answer = {"ok": False, **explain_os_error(error, self.root)}
            if not answer.get("ok") and request.get("op") == "put":
                answer["fatal"] = True  # the bytes that follow cannot be told from requests any more
            if request.get("op") != "put" or not answer.get("ok"):
                self.wire.send(answer)
            if answer.get("fatal"):
                return

    def close(self) -> None:
        """Let go of everything; called however the session ends."""
        for descriptor, temporary, _, _ in self.batch:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self.batch.clear()
        with contextlib.suppress(OSError):
            self.lock.release()
        self.pool.shutdown(wait=False)

    def patiently(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, and tell the host meanwhile that we are alive (an SD card can take minutes)."""
        future = self.pool.submit(work)
        while not wait([future], timeout=1.0).done:
            self.wire.say_alive()
        return future.result()

    # ---- lock

    def take_lock(self, request: dict[str, Any]) -> dict[str, Any]:
        owner, wait_s = request.get("owner"), request.get("wait_s", 0)
        if not is_text(owner, MAX_NAME_BYTES) or not isinstance(wait_s, (int, float)) or not 0 <= wait_s <= 30:
            raise Refusal("protocol", "lock needs an owner, and a wait of at most 30 s")
        self.make_folders()
        self.owner = str(owner)
        replaced = self.lock.take(self.owner, force=bool(request.get("force")), wait_s=float(wait_s))
        if replaced:
            self.note("lock-broken" if replaced["alive"] else "stale-lock-removed", was=replaced)
        self.remove_leftovers()
        return {"ok": True, "token": self.lock.token, "replaced": replaced}

    def drop_lock(self, request: dict[str, Any]) -> dict[str, Any]:
        self.lock.release()
        return {"ok": True}

    def make_folders(self) -> None:
        os.makedirs(self.root, mode=0o755, exist_ok=True)
        for name in ("store", "partial", "releases", "bin"):
            path = self.path(name)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            if os.path.islink(path) or not os.path.isdir(path):
                raise Refusal("layout", f"{path} is not a folder", remedy="move it away")

    def remove_leftovers(self) -> None:
        """Remove what an operation that was cut off has left: unfinished releases, half-removed releases."""
        for name in os.listdir(self.path("releases")):
            if not RELEASE_ID.fullmatch(name):
                shutil.rmtree(self.path("releases", name))
        for name in os.listdir(self.path("partial")):
            if not HASH.fullmatch(name):
                os.unlink(self.path("partial", name))

    # ---- plan and upload

    def plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check a release description and say what of it is missing here, and whether there is room for it."""
        size = request.get("size")
        if not is_count(size, MAX_RELEASE_BYTES):
            raise Refusal("protocol", f"a release description has at most {MAX_RELEASE_BYTES} bytes", fatal=True)
        data = self.wire.read_exactly(int(str(size)))
        release = parse_release(data)
        check_requirements(release)
        self.release, self.release_data, self.sizes, self.partial = release, data, {}, {}
        missing: list[list[Any]] = []
        need = 0
        for index, entry in enumerate(release["files"]):
            digest, length = entry["sha256"], entry["size"]
            if digest in self.sizes or self.has_object(digest, length):
                continue
            self.sizes[digest] = length
            resume = self.find_partial(digest, length)
            missing.append([index, *resume] if resume else [index])
            need += length - (resume[0] if resume else 0)
        need += SPARE_BYTES + 8192 * len(release["files"])
        free = self.free_bytes()
        if missing and free < need:
            raise Refusal("no-space", f"{need} bytes are needed in {self.root}, {free} are free", need=need, free=free)
        return {"ok": True, "id": release_id(data), "missing": missing, "need": need, "free": free}

    def has_object(self, digest: str, size: int) -> bool:
        try:
            found = os.lstat(self.object_path(digest))
        except FileNotFoundError:
            return False
        # A regular file of the right size: its hash was checked before it got this name.
        return (found.st_mode & 0o170000) == 0o100000 and found.st_size == size

    def find_partial(self, digest: str, size: int) -> tuple[int, str] | None:
        """Return length and SHA-256 of what an earlier push has left of an object."""
        try:
            descriptor = os.open(self.path("partial", digest), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            state = hashlib.sha256()
            length = 0
            while count := stream.readinto(self.wire.block):
                state.update(memoryview(self.wire.block)[:count])
                length += count
                self.wire.say_alive()
                if length > size:
                    return None
        if not length:
            return None
        self.partial[digest] = (length, state)
        return length, state.hexdigest()

    def free_bytes(self) -> int:
        path = self.root
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        numbers = os.statvfs(path)
        return numbers.f_bavail * numbers.f_frsize

    def put(self, request: dict[str, Any]) -> dict[str, Any]:
        """Receive one object: write, hash, and give it its name in the store when the hash is right."""
        digest, offset = request.get("sha256"), request.get("offset", 0)
        size = self.sizes.get(digest) if isinstance(digest, str) else None
        if not self.lock.token:
            raise Refusal("protocol", "put without the lock")
        if size is None or request.get("size") != size or not isinstance(digest, str):
            raise Refusal("protocol", "put of an object that the plan does not miss, or of another size")
        if offset and (digest not in self.partial or self.partial[digest][0] != offset):
            raise Refusal("protocol", f"put at offset {offset!r}, where nothing ends")
        if size < SMALL_FILE_BYTES and not offset:
            self.put_small(digest, size)
        else:
            self.put_large(digest, size, int(offset))
        del self.sizes[digest]
        return {"ok": True}

    def put_small(self, digest: str, size: int) -> None:
        temporary = self.path("partial", f"{digest}.{self.lock.token}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
        self.batch.append((descriptor, temporary, digest, size))
        state = hashlib.sha256()
        for block in self.wire.read_blocks(size):
            state.update(block)
            write_all(descriptor, block)
        if state.hexdigest() != digest:
            raise Refusal("hash", "what arrived does not have the hash that was announced", sha256=digest)
        self.batch_bytes += size
        if len(self.batch) >= BATCH_FILES or self.batch_bytes >= BATCH_BYTES:
            self.store_batch()

    def put_large(self, digest: str, size: int, offset: int) -> None:
        temporary = self.path("partial", digest)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, 0o644)  # a complete one may be read-only already
        state = self.partial[digest][1] if offset else hashlib.sha256()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                # A push whose lock was broken may still be writing this very file.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Refusal("lock-lost", "another push is still writing the same file") from error
            os.ftruncate(descriptor, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
            unwritten = 0
            writeback: Future[None] = self.pool.submit(lambda: None)
            for block in self.wire.read_blocks(size - offset):
                state.update(block)
                write_all(descriptor, block)
                unwritten += len(block)
                # Begin early to write to the disk, so that the fsync at the end does not take minutes.
                if unwritten >= WRITEBACK_BYTES and writeback.done():
                    writeback = self.pool.submit(os.fdatasync, descriptor)
                    unwritten = 0
            self.patiently(writeback.result)
            if state.hexdigest() != digest:
                os.unlink(temporary)
                raise Refusal("hash", "what arrived does not have the hash that was announced", sha256=digest)
            os.fchmod(descriptor, 0o444)
            self.patiently(lambda: os.fsync(descriptor))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                os.unlink(temporary)  # a full disk is worse than to send this again
            raise
        finally:
            os.close(descriptor)
        self.move_to_store(temporary, digest)
        self.stored_files += 1
        self.stored_bytes += size

    def store_batch(self) -> None:
        """Make the small files that have arrived durable, several at a time, and name them."""
        descriptors = [entry[0] for entry in self.batch]
        self.patiently(lambda: fsync_all(descriptors))
        for descriptor, temporary, digest, size in self.batch:
            os.close(descriptor)
            self.move_to_store(temporary, digest)
            self.stored_files += 1
            self.stored_bytes += size
        self.batch.clear()
        self.batch_bytes = 0

    def move_to_store(self, temporary: str, digest: str) -> None:
        folder = self.path("store", digest[:2])
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        # One time stamp for all: Python's byte code cache compares it, and it must not change with the push.
        os.utime(temporary, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
        os.rename(temporary, self.object_path(digest))
        self.touched.add(folder)

    def flush(self, request: dict[str, Any]) -> dict[str, Any]:
        self.store_batch()
        return {"ok": True, "files": self.stored_files, "bytes": self.stored_bytes, "missing": len(self.sizes)}

    # ---- releases

    def commit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make the planned release from the objects in the store: an immutable folder of hard links."""
        if self.release is None:
            raise Refusal("protocol", "commit without a plan")
        self.store_batch()
        for folder in [*sorted(self.touched), self.path("store")]:
            fsync_folder(folder)
        identity = release_id(self.release_data)
        final = self.path("releases", identity)
        files = self.release["files"]
        for entry in files:
            if not self.has_object(entry["sha256"], entry["size"]):
                raise Refusal("incomplete", f"{entry['path']!r} has not arrived", sha256=entry["sha256"])
        if os.path.isdir(final):
            with self.lock.held():
                if read_bytes(os.path.join(final, "release.json")) != self.release_data:
                    write_file(os.path.join(final, "release.json"), self.release_data)
                repaired = self.repair(final, files)
            return {"ok": True, "id": identity, "new": False, "repaired": repaired}
        with self.lock.held():
            temporary = f"{final}.{self.lock.token}.tmp"
        self.patiently(lambda: self.build_release(temporary, files))
        with self.lock.held():
            os.rename(temporary, final)
            fsync_folder(self.path("releases"))
        self.note("commit", release=identity)
        return {"ok": True, "id": identity, "new": True, "repaired": []}

    def build_release(self, folder: str, files: list[dict[str, Any]]) -> None:
        os.mkdir(folder)
        folders = {folder}
        for entry in files:
            target = os.path.join(folder, entry["path"])
            parent = os.path.dirname(target)
            if parent not in folders:
                os.makedirs(parent, exist_ok=True)
                while parent not in folders:
                    folders.add(parent)
                    parent = os.path.dirname(parent)
            link_object(self.object_path(entry["sha256"]), target)
        write_file(os.path.join(folder, "release.json"), self.release_data)
        for path in sorted(folders, reverse=True):
            fsync_folder(path)

    def repair(self, folder: str, files: list[dict[str, Any]]) -> list[str]:
        """Link again what in an existing release is not the store's object (it was damaged and has been replaced)."""
        repaired = []
        for entry in files:
            target = os.path.join(folder, entry["path"])
            source = self.object_path(entry["sha256"])
            with contextlib.suppress(OSError):
                if os.path.samefile(source, target):
                    continue
                # A copy is right as well: it was made where a file has as many links as it may have.
                if entry["size"] < SMALL_FILE_BYTES and self.hash_file(target) == entry["sha256"]:
                    continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{target}.new")
            link_object(source, f"{target}.new")
            os.replace(f"{target}.new", target)
            fsync_folder(os.path.dirname(target))
            repaired.append(entry["path"])
        return repaired

    def known_release(self, request: dict[str, Any]) -> str:
        identity = request.get("release")
        if not isinstance(identity, str) or not RELEASE_ID.fullmatch(identity):
            raise Refusal("protocol", "no valid release was named")
        if not os.path.isdir(self.path("releases", identity)):
            raise Refusal("no-release", f"there is no release {identity} on the device")
        return identity

    def read_release(self, identity: str) -> dict[str, Any]:
        data = read_bytes(self.path("releases", identity, "release.json"))
        if data is None or release_id(data) != identity:
            raise Refusal("damaged", f"the description of release {identity} is damaged", files=["release.json"])
        return parse_release(data)

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the release's golden prompt, in its own site folder, before anything points at it."""
        identity = self.known_release(request)
        timeout_s = request.get("timeout_s")
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 86400:
            raise Refusal("protocol", "check needs timeout_s between 0 and 86400")
        check_requirements(self.read_release(identity))
        folder = self.path("releases", identity)
        command = [sys.executable, "-m", "edgeawq", "run", os.path.join(folder, "bundle"), "--golden", "--json"]
        started = time.monotonic()
        code, output, errors = self.run_bounded(command, self.environment(folder), float(timeout_s))
        result = parse_last_line(output)
        seconds = round(time.monotonic() - started, 3)
        if code is None:
            reason = f"the health check did not end within {timeout_s:.0f} s"
        elif code != 0 or result.get("ok") is not True:
            detail = ": the golden prompt's tokens are not the expected ones" if "ok" in result else ""
            reason = f"the health check failed (exit code {code}){detail}"
        else:
            self.checked.add(identity)
            self.remember(identity, {"health": "good", "seconds": seconds})
            return {"ok": True, "result": result, "seconds": seconds}
        self.remember(identity, {"health": "bad", "reason": reason})
        self.note("check-failed", release=identity, reason=reason)
        tail = errors.decode("utf-8", "replace")[-2000:].strip()
        return {"ok": False, "code": "health", "what": reason, "stderr": tail, "result": result, "seconds": seconds}

    def environment(self, folder: str) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PYTHONPATH"] = os.path.join(folder, "site")
        environment["PYTHONNOUSERSITE"] = "1"
        environment["PYTHONSAFEPATH"] = "1"
        environment["PYTHONUTF8"] = "1"
        return environment

    def run_bounded(
        self, command: list[str], environment: dict[str, str], timeout_s: float
    ) -> tuple[int | None, bytes, bytes]:
        """Run `command`; return exit code (None: too slow, ended), output and errors, each cut to a limit."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=self.root,
            start_new_session=True,
        ) as child:
            assert child.stdout and child.stderr
            kept = {child.stdout.fileno(): b"", child.stderr.fileno(): b""}
            open_pipes = list(kept)
            deadline = time.monotonic() + timeout_s
            try:
                while open_pipes or child.poll() is None:
                    if time.monotonic() > deadline:
                        return None, kept[child.stdout.fileno()], kept[child.stderr.fileno()]
                    watched = [*open_pipes, self.wire.reader]
                    for pipe in select.select(watched, [], [], 0.1)[0]:
                        if pipe == self.wire.reader:
                            # The host has nothing to say now: this is the end of the connection.
                            raise HostGone("the connection ended during the health check")
                        data = os.read(pipe, 65536)
                        kept[pipe] = (kept[pipe] + data)[-MAX_OUTPUT_BYTES:]
                        if not data:
                            open_pipes.remove(pipe)
                    self.wire.say_alive()
                return child.returncode, kept[child.stdout.fileno()], kept[child.stderr.fileno()]
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)

    def switch(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let `current` point at a release that this session has checked; `previous` at what ran before."""
        identity = self.known_release(request)
        if identity not in self.checked:
            raise Refusal("protocol", "switch to a release that was not checked in this session")
        with self.lock.held():
            before = self.target("current")
            if before != identity:
                # In this order a cut between the two leaves the running release as it was.
                if before:
                    self.point("previous", before)
                self.point("current", identity)
            self.write_launcher()
            event = {"op": "switch", "from": before, "to": identity} if before != identity else None
            self.remember(identity, {"switched": True}, event=event)
        self.note("switch", release=identity, was=before)
        return {"ok": True, "current": identity, "previous": self.target("previous")}

    def point(self, name: str, identity: str) -> None:
        temporary = self.path(f"{name}.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(f"releases/{identity}", temporary)
        os.replace(temporary, self.path(name))
        fsync_folder(self.root)

    def target(self, name: str) -> str | None:
        """Return the release that the symlink `name` points at, if that release is there."""
        try:
            folder, _, identity = os.readlink(self.path(name)).rpartition("/")
        except OSError:
            return None
        whole = folder == "releases" and RELEASE_ID.fullmatch(identity) and os.path.isdir(self.path(name))
        return identity if whole else None

    def write_launcher(self) -> None:
        """Write bin/edgeawq, which runs the current release; for `edgeawq chat NAME` and for people on the device."""
        python = "'" + sys.executable.replace("'", "'\\''") + "'"
        text = f"""#!/bin/sh
# Written by `edgeawq push`: runs edgeawq of the release that is current when it starts.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd -P) || exit 1
release=$(CDPATH= cd -- "${{EDGEAWQ_RELEASE:-$root/current}}" && pwd -P) || exit 1
export PYTHONPATH="$release/site" PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONUTF8=1
exec {python} -m edgeawq "$@"
"""
        path = self.path("bin", "edgeawq")
        if read_bytes(path) != text.encode():
            write_file(path, text.encode())
            os.chmod(path, 0o755)

    def verify(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hash every file of a release again; throw damaged objects out of the store so that a push brings them."""
        identity = self.known_release(request)
        release = self.read_release(identity)
        verdicts: dict[tuple[int, int], bool] = {}
        damaged = []
        for entry in release["files"]:
            path = self.path("releases", identity, entry["path"])
            try:
                found = os.lstat(path)
                key = (found.st_dev, found.st_ino)
                if key not in verdicts:
                    verdicts[key] = found.st_size == entry["size"] and self.hash_file(path) == entry["sha256"]
                good = verdicts[key]
            except OSError:
                good = False
            if not good:
                damaged.append(entry["path"])
                stored = self.object_path(entry["sha256"])
                if self.lock.token and os.path.lexists(stored) and self.hash_file(stored) != entry["sha256"]:
                    os.unlink(stored)
        if damaged:
            self.note("damage-found", release=identity, files=damaged[:20], count=len(damaged))
        return {"ok": True, "damaged": damaged[:1000], "count": len(damaged)}

    def hash_file(self, path: str) -> str:
        state = hashlib.sha256()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            while count := stream.readinto(self.wire.block):
                state.update(memoryview(self.wire.block)[:count])
                self.wire.say_alive()
        return state.hexdigest()

    # ---- status and clearing up

    def status(self, request: dict[str, Any]) -> dict[str, Any]:
        state = self.state()
        releases = []
        for identity in self.list_releases()[:MAX_RELEASES]:
            entry: dict[str, Any] = {"id": identity, **state["releases"].get(identity, {})}
            try:
                release = self.read_release(identity)
                entry.update(name=release["name"], profile=release["profile"], requires=release["requires"])
                entry["bytes"] = sum(file["size"] for file in release["files"])
            except Refusal as refusal:
                entry["damaged"] = refusal.what
            releases.append(entry)
        return {
            "ok": True,
            "current": self.target("current"),
            "previous": self.target("previous"),
            "releases": releases,
            "history": state["history"][-MAX_HISTORY:],
            "lock": self.lock.describe() if os.path.isdir(self.root) else None,
            "free": self.free_bytes(),
        }

    def gc(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove all releases but the newest `keep`; never the current, the previous, or one that is running."""
        keep = request.get("keep")
        if not is_count(keep, MAX_RELEASES) or int(str(keep)) < 1:
            raise Refusal("protocol", f"gc needs keep between 1 and {MAX_RELEASES}")
        removed = []
        freed = 0
        with self.lock.held():
            protected = {self.target("current"), self.target("previous"), *self.running_releases()}
            releases = self.list_releases()
            room = max(0, int(str(keep)) - sum(1 for identity in releases if identity in protected))
            for identity in releases:
                if identity in protected:
                    continue
                if room:
                    room -= 1
                    continue
                trash = self.path("releases", f"{identity}.trash")
                os.rename(self.path("releases", identity), trash)  # never half a release under its own name
                shutil.rmtree(trash)
                removed.append(identity)
            for name in os.listdir(self.path("partial")):
                freed += os.lstat(self.path("partial", name)).st_size
                os.unlink(self.path("partial", name))
            for folder in os.listdir(self.path("store")):
                for name in os.listdir(self.path("store", folder)):
                    found = os.lstat(self.path("store", folder, name))
                    if found.st_nlink == 1:  # no release links to it any more
                        os.unlink(self.path("store", folder, name))
                        freed += found.st_size
                self.wire.say_alive()
            state = self.state()
            for identity in removed:
                state["releases"].pop(identity, None)
            self.write_state(state)
        if removed:
            self.note("gc", removed=removed, freed=freed)
        return {"ok": True, "removed": removed, "freed": freed}

    def list_releases(self) -> list[str]:
        """Return the ids of all releases, the last activated first."""
        try:
            names = [name for name in os.listdir(self.path("releases")) if RELEASE_ID.fullmatch(name)]
        except FileNotFoundError:
            return []
        known = self.state()["releases"]
        return sorted(names, key=lambda name: (-int(known.get(name, {}).get("sequence") or 0), name))

    def running_releases(self) -> set[str]:
        """Return the releases that a process of this user was started from."""
        found: set[str] = set()
        marker = re.compile(re.escape(self.path("releases")).encode() + rb"/([0-9a-f]{16})/site")
        for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as stream:
                    found.update(match.decode() for match in marker.findall(stream.read(1 << 20)))
        return found

    def state(self) -> dict[str, Any]:
        """Return state.json: what is known about releases. The symlinks, not this file, say what is current."""
        state = read_json(self.path("state.json"), MAX_RELEASE_BYTES)
        releases, history = state.get("releases"), state.get("history")
        good = isinstance(releases, dict) and all(isinstance(value, dict) for value in releases.values())
        return {
            "format": 1,
            "sequence": state["sequence"] if is_count(state.get("sequence"), 1 << 60) else 0,
            "releases": releases if good else {},
            "history": history if isinstance(history, list) else [],
        }

    def write_state(self, state: dict[str, Any]) -> None:
        write_file(self.path("state.json"), json.dumps(state, indent=1).encode())

    def remember(self, identity: str, facts: dict[str, Any], event: dict[str, Any] | None = None) -> None:
        state = self.state()
        entry = state["releases"].setdefault(identity, {})
        entry.update(facts, time=time.time())
        if facts.get("health") == "good":
            entry.pop("reason", None)
        if facts.pop("switched", None) or "sequence" not in entry:
            entry.pop("switched", None)
            state["sequence"] += 1
            entry["sequence"] = state["sequence"]
        if event:
            state["history"] = [*state["history"], {**event, "time": time.time(), "by": self.owner}][-MAX_HISTORY:]
        self.write_state(state)

    def note(self, event: str, **details: Any) -> None:
        """Append a line to the audit log."""
        path = self.path("log")
        line = json.dumps({"time": time.time(), "by": self.owner, "token": self.lock.token, "event": event, **details})
        with contextlib.suppress(OSError):
            if os.path.getsize(path) > MAX_LOG_BYTES:
                os.replace(path, f"{path}.1")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- helpers


def release_id(data: bytes) -> str:
    """Return a release's name: the first 64 bits of the SHA-256 of its description, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:16]


def read_bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_RELEASE_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_RELEASE_BYTES else None


def write_all(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


def fsync_all(descriptors: list[int]) -> None:
    # Several at a time: the file system commits them together.
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(os.fsync, descriptors))


def link_object(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise Refusal("no-links", f"the file system of {source} has no hard links") from error
        if error.errno != errno.EMLINK:
            raise
        shutil.copy2(source, target)  # an empty file that is everywhere: the file system's limit on links is reached
        with open(target, "rb") as stream:
            os.fsync(stream.fileno())


def parse_last_line(output: bytes) -> dict[str, Any]:
    """Return the JSON object at the end of a command's output; an empty one if there is none."""
    text = output.decode("utf-8", "replace").strip()
    for candidate in (text, text.rpartition("\n")[2]):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(candidate)
            if isinstance(found, dict):
                return found
    return {}


def explain_os_error(error: OSError, root: str) -> dict[str, Any]:
    """Return an answer that names the kind of failure."""
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"code": "no-space", "what": f"the device's disk is full ({root}): {what}"}
    if error.errno == errno.EROFS:
        return {"code": "read-only", "what": f"the device's file system is read-only: {what}"}
    if error.errno in (errno.EACCES, errno.EPERM):
        return {"code": "permission", "what": f"the device's user may not write: {what}"}
    return {"code": "os-error", "what": what}


def raise_host_gone(number: int, frame: Any) -> None:
    raise HostGone(f"signal {number}")


def main(arguments: list[str]) -> int:
    if sys.version_info < MIN_PYTHON:
        return 97
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, raise_host_gone)
    # Whatever prints by accident must not get between our lines.
    writer = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, 1 << 20)
    root = os.path.realpath(os.path.expanduser(arguments[0]))
    receiver = Receiver(Wire(0, writer), root)
    try:
        receiver.serve()
    except HostGone:
        return 0
    finally:
        receiver.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
