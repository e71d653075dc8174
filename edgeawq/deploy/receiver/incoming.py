"""Content on its way into the store: small files in batches, large files chunk by chunk, over several channels."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from .description import Description, File
from .files import fsync_all, fsync_folder, is_count, remove, write_all
from .home import STORED_TIME, Home
from .limits import BATCH_BYTES, BATCH_FILES, BLOCK_BYTES, WRITEBACK_BYTES
from .refusal import Refusal
from .wire import Wire


class Assembly:
    """A large file that is being put together in partial/, from what is here and what is sent."""

    def __init__(self, home: Home, file: File, pool: ThreadPoolExecutor) -> None:
        self.file = file
        self.pool = pool
        self.writeback: Future[None] = pool.submit(lambda: None)
        self.path = home.path("partial", file.name)
        self.offsets = [0]
        for length, _ in file.chunks:
            self.offsets.append(self.offsets[-1] + length)
        self.missing = set(range(len(file.chunks)))
        self.lock = threading.Lock()
        self.unwritten = 0
        self.complete = False
        if os.path.isfile(self.path) and not os.path.islink(self.path):
            os.chmod(self.path, 0o644)  # a complete one may be read-only already
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            # A push whose lock was broken may still be writing this very file.
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self.descriptor, file.size)
        except BlockingIOError as error:
            os.close(self.descriptor)
            raise Refusal("lock-lost", "another push is still writing the same file") from error
        except BaseException:
            os.close(self.descriptor)
            raise

    def keep_what_is_right(self, alive: Callable[[], None]) -> None:
        """Take over the chunks that an earlier push has left."""
        for index in sorted(self.missing):
            length, digest = self.file.chunks[index]
            if has_data(self.descriptor, self.offsets[index], length):
                block = os.pread(self.descriptor, length, self.offsets[index])
                if hashlib.sha256(block).hexdigest() == digest:
                    self.missing.discard(index)
            alive()

    def copy_from(self, sources: dict[str, tuple[str, int]], alive: Callable[[], None]) -> int:
        """Copy chunks that other files of the store have; `sources` maps a chunk to (path, offset). Return the bytes.

        What is copied is hashed again: a damaged source is not worth having.
        """
        copied = 0
        for index in sorted(self.missing):
            length, digest = self.file.chunks[index]
            source = sources.get(digest)
            if source is None:
                continue
            with contextlib.suppress(OSError), open(source[0], "rb", buffering=0) as stream:
                block = os.pread(stream.fileno(), length, source[1])
                if hashlib.sha256(block).hexdigest() == digest:
                    write_all(self.descriptor, memoryview(block), self.offsets[index])
                    self.missing.discard(index)
                    copied += length
            alive()
        return copied

    def write(self, index: int, block: memoryview) -> bool:
        """Store a chunk whose hash was checked; return True when it was the last one."""
        # Under the lock: a file system writes to one file by one thread at a time anyway, and the descriptor's number
        # must not be used after close(), when it may mean another file.
        with self.lock:
            if self.descriptor < 0:
                raise Refusal("protocol", "put after the end of the upload")
            if index not in self.missing:
                return False  # another channel has brought it meanwhile
            write_all(self.descriptor, block, self.offsets[index])
            self.missing.discard(index)
            self.unwritten += len(block)
            self.complete = not self.missing
            if self.unwritten >= WRITEBACK_BYTES and self.writeback.done():
                # Begin early to write to the disk, so that the fsync at the end does not take minutes.
                self.writeback.result()  # the kernel reports a failed write once only
                self.unwritten = 0
                self.writeback = self.pool.submit(os.fdatasync, self.descriptor)
            return self.complete

    def list_missing(self) -> list[list[int]]:
        """Return the missing chunks as [first, count] runs."""
        runs: list[list[int]] = []
        with self.lock:
            missing = sorted(self.missing)
        for index in missing:
            if runs and sum(runs[-1]) == index:
                runs[-1][1] += 1
            else:
                runs.append([index, 1])
        return runs

    def make_durable(self) -> None:
        """Bring a complete file to the disk."""
        self.writeback.result()
        os.fchmod(self.descriptor, 0o444)
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Wait for what is being written, and close the file."""
        wait([self.writeback])
        with self.lock:
            if self.descriptor >= 0:
                os.close(self.descriptor)
            self.descriptor = -1


class Incoming:
    """What a session may still receive. Shared by its channels, each in a thread of its own."""

    def __init__(self, home: Home, release: Description, pool: ThreadPoolExecutor) -> None:
        self.home = home
        self.pool = pool
        self.files = release.files
        self.lock = threading.Lock()
        self.assemblies: dict[int, Assembly] = {}
        self.small: set[int] = set()  # small files that are still missing
        self.finishing: list[Future[None]] = []
        self.touched: set[str] = set()
        self.closed = False
        self.stored_files = 0
        self.stored_bytes = 0

    def prepare(self, missing: Iterable[int], sources: dict[str, tuple[str, int]], alive: Callable[[], None]) -> int:
        """Open the large files that are missing and fill in what is on this device; return the bytes copied."""
        copied = 0
        for index in missing:
            file = self.files[index]
            if len(file.chunks) == 1:
                self.small.add(index)
                continue
            assembly = Assembly(self.home, file, self.pool)
            self.assemblies[index] = assembly
            try:
                assembly.keep_what_is_right(alive)
                copied += assembly.copy_from(sources, alive)
            except OSError as error:
                self.drop_if_full(assembly, error)
                raise
            if not assembly.missing:
                self._finish(assembly)
        return copied

    def list_missing(self) -> list[list[Any]]:
        """Return [file] for a whole one, [file, [[first chunk, count], …]] for one of several chunks."""
        found: list[list[Any]] = [[index] for index in sorted(self.small)]
        found += [[index, assembly.list_missing()] for index, assembly in self.assemblies.items() if assembly.missing]
        return found

    def take(self, index: int, chunk: int) -> tuple[int, str]:
        """Return length and hash of what the host wants to send; Refusal when it is not missing."""
        assembly = self.assemblies.get(index)
        if assembly is not None and chunk in assembly.missing:
            return assembly.file.chunks[chunk]
        if index in self.small and chunk == 0:
            return self.files[index].chunks[0]
        raise Refusal("protocol", "put of content that the plan does not miss")

    def drop_if_full(self, assembly: Assembly, error: OSError) -> None:
        """A full disk is worse than to send this again."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                os.unlink(assembly.path)

    def store(self, index: int, chunk: int, block: memoryview, batch: Batch) -> None:
        """Keep content whose hash is right."""
        assembly = self.assemblies.get(index)
        if assembly is None:
            with self.lock:
                if index not in self.small:
                    return  # another channel has brought it meanwhile
                self.small.discard(index)
            batch.add(self.files[index], block)
            return
        try:
            last = assembly.write(chunk, block)
        except OSError as error:
            self.drop_if_full(assembly, error)
            raise
        if last:
            self._finish(assembly)

    def _finish(self, assembly: Assembly) -> None:
        def finish() -> None:
            try:
                assembly.make_durable()
                self.name_content(assembly.path, assembly.file)
            except OSError as error:
                self.drop_if_full(assembly, error)
                raise
            finally:
                assembly.close()

        with self.lock:
            self.finishing.append(self.pool.submit(finish))

    def name_content(self, temporary: str, file: File) -> None:
        """Move a durable file to its name in the store."""
        folder = os.path.dirname(self.home.object_path(file.name))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        os.utime(temporary, (STORED_TIME, STORED_TIME), follow_symlinks=False)
        with self.lock:
            if self.closed:  # a channel that was left behind; the lock may be another's by now
                raise Refusal("protocol", "put after the end of the upload")
            try:
                os.rename(temporary, self.home.object_path(file.name))
            except IsADirectoryError:
                remove(self.home.object_path(file.name))  # it has no business there
                os.rename(temporary, self.home.object_path(file.name))
            self.touched.add(folder)
            self.stored_files += 1
            self.stored_bytes += file.size

    def wait_until_durable(self, wire: Wire) -> None:
        """Return when all that has arrived completely has its name in the store, and the names are durable."""
        with self.lock:
            finishing, self.finishing = self.finishing, []
        for future in finishing:
            wire.wait_for(future)
        with self.lock:
            touched, self.touched = self.touched, set()
        for folder in [*sorted(touched), self.home.path("store")]:
            fsync_folder(folder)

    def close(self) -> None:
        """Close all files; what is complete gets its name first, so that nothing is written after this."""
        with self.lock:
            self.small.clear()
            finishing, self.finishing = self.finishing, []
        wait(finishing)
        with self.lock:
            self.closed = True
        for assembly in self.assemblies.values():
            assembly.close()


class Batch:
    """What one channel has received and not finished: a chunk that is being written, small files not yet durable."""

    def __init__(self, incoming: Incoming, wire: Wire) -> None:
        self.incoming = incoming
        self.wire = wire
        self.writing: Future[None] | None = None
        self.entries: list[tuple[int, str, File]] = []  # several fsyncs at a time are quicker
        self.size = 0

    def keep(self, index: int, chunk: int, block: memoryview) -> None:
        """Keep content whose hash is right; a chunk of a large file is written while the next one is read."""
        self.finish_writing()
        if index not in self.incoming.assemblies:
            self.incoming.store(index, chunk, block, self)
            return
        self.writing = self.incoming.pool.submit(self.incoming.store, index, chunk, block, self)
        self.wire.swap_blocks()

    def finish_writing(self) -> None:
        """Wait for the chunk that is being written; what went wrong with it is raised here."""
        writing, self.writing = self.writing, None
        if writing is not None:
            self.wire.wait_for(writing)

    def add(self, file: File, block: memoryview) -> None:
        temporary = self.incoming.home.path("partial", f"{file.name}.{self.incoming.home.lock.token}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
        self.entries.append((descriptor, temporary, file))
        write_all(descriptor, block, 0)
        self.size += file.size
        if len(self.entries) >= BATCH_FILES or self.size >= BATCH_BYTES:
            self.store()

    def store(self) -> None:
        """Make all that this channel has received durable, but for large files that are not complete."""
        self.finish_writing()
        descriptors = [descriptor for descriptor, _, _ in self.entries]
        self.wire.wait_for(self.incoming.pool.submit(fsync_all, descriptors))
        while self.entries:
            descriptor, temporary, file = self.entries[-1]
            self.incoming.name_content(temporary, file)
            self.entries.pop()
            os.close(descriptor)
        self.size = 0

    def discard(self) -> None:
        """Remove what is not named yet; the host sends it again."""
        if self.writing is not None:
            wait([self.writing])  # it uses a descriptor that is closed next
            self.writing = None
        for descriptor, temporary, _ in self.entries:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self.entries.clear()


def receive(wire: Wire, request: dict[str, Any], incoming: Incoming, batch: Batch) -> None:
    """Carry out a `put`: read the bytes that follow it, check them, keep them."""
    index, chunk, length = request.get("file"), request.get("chunk", 0), request.get("length")
    if not is_count(index, len(incoming.files) - 1) or not is_count(chunk, 1 << 32):
        raise Refusal("protocol", "put names no file of the plan")
    assert isinstance(index, int) and isinstance(chunk, int)
    size, digest = incoming.take(index, chunk)
    compressed = request.get("encoding") == "zlib"
    if request.get("encoding") not in (None, "zlib") or not is_count(length, size) or (length != size) != compressed:
        raise Refusal("protocol", f"put of {length!r} bytes for content of {size}, encoded {request.get('encoding')!r}")
    assert isinstance(length, int)
    state = hashlib.sha256()
    if compressed:
        block = inflate(wire.read_exactly(length), size)
        state.update(block)
    else:
        block = wire.read_exactly(length, state.update)
    if state.hexdigest() != digest:
        raise Refusal("hash", "what arrived does not have the hash that was announced", sha256=digest)
    batch.keep(index, chunk, block)


def inflate(block: memoryview, size: int) -> memoryview:
    """Return the `size` bytes that `block` is a zlib stream of; never more, whatever it would unpack to."""
    state = zlib.decompressobj()
    try:
        data = state.decompress(block, size + 1)
    except zlib.error as error:
        raise Refusal("hash", f"compressed content cannot be unpacked: {error}") from None
    if len(data) != size or not state.eof:
        raise Refusal("hash", f"compressed content does not unpack to the {size} bytes that were announced")
    return memoryview(data)


def has_data(descriptor: int, offset: int, length: int) -> bool:
    """False when this part of a file was never written."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) < offset + length
    except OSError as error:
        return error.errno != errno.ENXIO  # a file system that does not know: the hash will tell


def hash_blocks(path: str, file: File, alive: Callable[[], None]) -> bool:
    """True when the file in `path` has the content that `file` describes."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
        return False
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as stream:
        for length, digest in file.chunks:
            state = hashlib.sha256()
            left = length
            while left:
                block = stream.read(min(left, BLOCK_BYTES))
                if not block:
                    return False
                state.update(block)
                left -= len(block)
            if state.hexdigest() != digest:
                return False
            alive()
    return True
