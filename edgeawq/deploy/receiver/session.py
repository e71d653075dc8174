"""One session with the host: requests in, answers out."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import signal
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .channels import Channels
from .description import Description, check_requirements, parse_release
from .files import free_bytes, is_count, is_text
from .health import check_release
from .home import Home
from .incoming import Batch, Incoming, receive
from .limits import (
    MAGIC,
    MAX_HISTORY,
    MAX_LOG_LINES,
    MAX_NAME_BYTES,
    MAX_RELEASE_BYTES,
    MAX_RELEASES,
    MAX_SIGNATURE_BYTES,
    MIN_PYTHON,
    PROTOCOL,
    SPARE_BYTES,
)
from .pointers import count_starts, find_target, switch_to, write_launcher
from .refusal import HostGone, Refusal, explain_os_error
from .releases import (
    choose_known,
    collect_garbage,
    commit_release,
    index_chunks,
    list_releases,
    read_release,
    verify_release,
)
from .trust import Trust
from .wire import Wire

Request = dict[str, Any]
Answer = dict[str, Any]


class Session:
    """It holds what the host has planned, sent and checked so far."""

    def __init__(self, wire: Wire, root: str) -> None:
        self.wire = wire
        self.home = Home(root)
        self.trust = Trust(root)
        self.pool = ThreadPoolExecutor(max_workers=8)
        self.release: Description | None = None
        self.signature = b""
        self.verdict: dict[str, Any] = {}
        self.incoming: Incoming | None = None
        self.batch: Batch | None = None
        self.channels: Channels | None = None
        self.checked: set[str] = set()
        self.operations: dict[str, Callable[[Request], Answer]] = {
            "lock": self.take_lock,
            "unlock": self.drop_lock,
            "ping": lambda request: {"ok": True},
            "plan": self.plan,
            "assemble": self.assemble,
            "channels": self.open_channels,
            "flush": self.flush,
            "commit": self.commit,
            "check": self.check,
            "switch": self.switch,
            "verify": self.verify,
            "status": self.status,
            "gc": self.gc,
            "log": self.read_log,
            "pin": self.pin,
            "rotate": self.rotate,
        }

    def serve(self) -> None:
        """Answer requests until the host says bye or goes away."""
        greeting = {"ok": True, "protocol": PROTOCOL, "root": self.home.root, "machine": platform.machine()}
        greeting["python"] = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
        greeting["executable"] = sys.executable
        self.wire.send({**greeting, "magic": MAGIC})
        while True:
            request: Request = {}
            try:
                request = self.wire.read_line()
                operation = request.get("op")
                if operation == "bye":
                    self.wire.send({"ok": True})
                    return
                if operation == "put":
                    self.put(request)
                    continue
                handler = self.operations.get(operation) if isinstance(operation, str) else None
                if handler is None:
                    raise Refusal("protocol", f"the operation {str(operation)[:50]!r} is not known", fatal=True)
                answer = handler(request)
            except Refusal as refusal:
                answer = {"ok": False, "code": refusal.code, "what": refusal.what, **refusal.details}
            except OSError as error:
                answer = {"ok": False, **explain_os_error(error, self.home.root)}
            if not answer["ok"] and request.get("op") == "put":
                answer["fatal"] = True  # the bytes that follow cannot be told from requests any more
            self.wire.send(answer)
            if answer.get("fatal"):
                return

    def close(self) -> None:
        """Let go of everything; called however the session ends."""
        self.end_upload()
        # The lock says that nobody writes here but us: it goes last.
        self.pool.shutdown(wait=True, cancel_futures=True)
        with contextlib.suppress(OSError):
            self.home.lock.release()

    def end_upload(self) -> None:
        if self.channels is not None:
            self.channels.close()
        if self.batch is not None:
            self.batch.discard()
        if self.incoming is not None:
            self.incoming.close()
        self.channels, self.batch, self.incoming = None, None, None

    # ---- lock

    def take_lock(self, request: Request) -> Answer:
        owner, wait_s = request.get("owner"), request.get("wait_s", 0)
        if not is_text(owner, MAX_NAME_BYTES) or not isinstance(wait_s, (int, float)) or not 0 <= wait_s <= 30:
            raise Refusal("protocol", "lock needs an owner, and a wait of at most 30 s")
        home = self.home
        home.make_folders()
        home.owner = str(owner)
        replaced = home.lock.take(home.owner, force=bool(request.get("force")), wait_s=float(wait_s))
        if replaced:
            home.note("lock-broken" if replaced["alive"] else "stale-lock-removed", was=replaced)
        home.remove_leftovers()
        return {"ok": True, "token": home.lock.token, "replaced": replaced}

    def drop_lock(self, request: Request) -> Answer:
        self.end_upload()
        self.home.lock.release()
        return {"ok": True}

    # ---- plan and upload

    def plan(self, request: Request) -> Answer:
        """Take a release's description, from the host or from here, and say what of it is missing and what it needs."""
        self.end_upload()
        release = self.read_description(request)
        check_requirements(release)
        signature = request.get("signature", "")
        if not isinstance(signature, str) or len(signature) > MAX_SIGNATURE_BYTES:
            raise Refusal("protocol", f"a signature has at most {MAX_SIGNATURE_BYTES} bytes")
        self.signature = signature.encode()
        digest = hashlib.sha256(release.data).hexdigest()
        self.verdict = self.trust.check_release(self.signature or None, digest, time.time())
        self.release = release
        missing = self.list_missing(release)
        known = index_chunks(self.home) if any(len(release.files[index].chunks) > 1 for index in missing) else {}
        need = sum(release.files[index].size for index in missing)
        here = sum(
            length
            for index in missing
            for length, digest in release.files[index].chunks
            if len(release.files[index].chunks) > 1 and digest in known
        )
        free = free_bytes(self.home.root)
        arrived = sum(self.arrived_bytes(release.files[index].name) for index in missing)
        need_free = need - arrived + SPARE_BYTES + 8192 * len(release.files)
        if missing and free < need_free:
            raise Refusal(
                "no-space",
                f"{need_free} bytes are needed in {self.home.root}, {free} are free",
                need=need_free,
                free=free,
            )
        return {
            "ok": True,
            "id": release.identity,
            "missing": missing,
            "upload": need - here,
            "need": need_free,
            "free": free,
            "trust": self.verdict,
        }

    def read_description(self, request: Request) -> Description:
        if "release" in request:  # one that is here already need not be sent
            return read_release(self.home, choose_known(self.home, request["release"]))
        size, length = request.get("size"), request.get("length")
        if not is_count(size, MAX_RELEASE_BYTES) or not is_count(length, MAX_RELEASE_BYTES):
            raise Refusal("protocol", f"a release description has at most {MAX_RELEASE_BYTES} bytes", fatal=True)
        assert isinstance(size, int) and isinstance(length, int)
        state = zlib.decompressobj()
        try:
            data = state.decompress(self.wire.read_exactly(length), size + 1)
        except zlib.error:
            raise Refusal("manifest", "the release description has arrived damaged") from None
        if len(data) != size or not state.eof:
            raise Refusal("manifest", f"the release description does not have the {size} bytes that were announced")
        return parse_release(data)

    def list_missing(self, release: Description) -> list[int]:
        """Return the indices of the files whose content is not in the store, each content once."""
        missing: list[int] = []
        seen: set[str] = set()
        for index, file in enumerate(release.files):
            if file.name not in seen and not self.home.has_object(file.name, file.size):
                missing.append(index)
            seen.add(file.name)
        return missing

    def arrived_bytes(self, name: str) -> int:
        try:
            return os.lstat(self.home.path("partial", name)).st_blocks * 512
        except OSError:
            return 0

    def assemble(self, request: Request) -> Answer:
        """Put together what is on this device of the planned release, and say exactly what the host has to send."""
        if self.release is None or not self.home.lock.token:
            raise Refusal("protocol", "assemble without a plan and the lock")
        self.end_upload()
        self.incoming = Incoming(self.home, self.release, self.pool)
        self.batch = Batch(self.incoming, self.wire)
        missing = self.list_missing(self.release)
        sources = index_chunks(self.home) if any(len(self.release.files[index].chunks) > 1 for index in missing) else {}
        copied = self.incoming.prepare(missing, sources, self.wire.say_alive)
        return {"ok": True, "missing": self.incoming.list_missing(), "copied": copied}

    def open_channels(self, request: Request) -> Answer:
        """Let more channels join; the answer says how."""
        if self.incoming is None:
            raise Refusal("protocol", "channels without assemble")
        if self.channels is None:
            self.channels = Channels(self.home, self.incoming)
        return {"ok": True, "folder": self.home.path("lock"), "secret": self.channels.secret}

    def put(self, request: Request) -> None:
        if self.incoming is None or self.batch is None:
            raise Refusal("protocol", "put without assemble")
        receive(self.wire, request, self.incoming, self.batch)

    def flush(self, request: Request) -> Answer:
        """Make all that has arrived durable. The host flushes its other channels first."""
        if self.incoming is None or self.batch is None:
            raise Refusal("protocol", "flush without assemble")
        self.batch.store()
        self.incoming.wait_until_durable(self.wire)
        missing = self.incoming.list_missing()
        return {
            "ok": True,
            "files": self.incoming.stored_files,
            "bytes": self.incoming.stored_bytes,
            "missing": missing,
        }

    # ---- releases

    def commit(self, request: Request) -> Answer:
        if self.release is None:
            raise Refusal("protocol", "commit without a plan")
        if self.batch is not None and self.incoming is not None:
            self.flush(request)
        self.end_upload()
        home, release, signature = self.home, self.release, self.signature
        answer = self.wire.wait_for(
            self.pool.submit(lambda: commit_release(home, release, signature, self.wire.say_alive))
        )
        home.remember(release.identity, {"trust": self.verdict})
        return answer

    def check(self, request: Request) -> Answer:
        identity = choose_known(self.home, request.get("release"))
        timeout_s = request.get("timeout_s")
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 86400:
            raise Refusal("protocol", "check needs timeout_s between 0 and 86400")
        answer = check_release(self.home, identity, float(timeout_s), self.wire)
        if answer["ok"]:
            self.checked.add(identity)
        return answer

    def switch(self, request: Request) -> Answer:
        """Let `current` point at a release that this session has checked; `previous` at what ran before."""
        home = self.home
        identity = choose_known(home, request.get("release"))
        if identity not in self.checked:
            raise Refusal("protocol", "switch to a release that was not checked in this session")
        with home.lock.held():
            if self.release is not None and identity == self.release.identity:
                self.trust.accept(self.verdict, identity)
            else:
                # Going back needs no new signature, but the key that signed the release must still be trusted.
                self.trust.accept_recorded(home.state()["releases"].get(identity, {}).get("trust"), identity)
            before = switch_to(home, identity)
            write_launcher(home)
            event = {"op": "switch", "from": before, "to": identity} if before != identity else None
            home.remember(identity, {}, event=event)
        home.note("switch", release=identity, was=before)
        return {"ok": True, "current": identity, "previous": find_target(home, "previous")}

    def verify(self, request: Request) -> Answer:
        return verify_release(self.home, choose_known(self.home, request.get("release")), self.wire.say_alive)

    def gc(self, request: Request) -> Answer:
        keep = request.get("keep")
        if not is_count(keep, MAX_RELEASES) or not keep:
            raise Refusal("protocol", f"gc needs keep between 1 and {MAX_RELEASES}")
        assert isinstance(keep, int)
        return collect_garbage(self.home, keep, self.wire.say_alive)

    def status(self, request: Request) -> Answer:
        home = self.home
        state = home.state()
        releases = []
        for identity in list_releases(home)[:MAX_RELEASES]:
            entry: dict[str, Any] = {"id": identity, **state["releases"].get(identity, {})}
            try:
                release = read_release(home, identity)
                entry.update(name=release.name, profile=release.profile, bytes=release.total_bytes)
                entry["requires"] = {"machine": release.machine, "python": release.python}
            except Refusal as refusal:
                entry["damaged"] = refusal.what
            starts = count_starts(home, identity)
            if starts:
                entry["bad_starts"] = starts
            releases.append(entry)
        return {
            "ok": True,
            "current": find_target(home, "current"),
            "previous": find_target(home, "previous"),
            "releases": releases,
            "history": state["history"][-MAX_HISTORY:],
            "lock": home.lock.describe() if os.path.isdir(home.root) else None,
            "free": free_bytes(home.root),
            "trust": self.trust.describe(),
        }

    def read_log(self, request: Request) -> Answer:
        count = request.get("count")
        if not is_count(count, MAX_LOG_LINES):
            raise Refusal("protocol", f"log needs a count of at most {MAX_LOG_LINES}")
        assert isinstance(count, int)
        return {"ok": True, "lines": self.home.read_log(count)}

    # ---- keys

    def pin(self, request: Request) -> Answer:
        with self.home.lock.held():
            answer = self.trust.pin(request.get("keys"))
        self.home.note("pin", keys=[key["id"] for key in answer["keys"]])
        return {"ok": True, "trust": answer}

    def rotate(self, request: Request) -> Answer:
        envelope = request.get("envelope")
        if not isinstance(envelope, str) or len(envelope) > MAX_SIGNATURE_BYTES:
            raise Refusal("protocol", f"a signed set of keys has at most {MAX_SIGNATURE_BYTES} bytes")
        with self.home.lock.held():
            answer = self.trust.rotate(envelope.encode())
        self.home.note("rotate", keys=[key["id"] for key in answer["keys"]], version=answer["version"])
        return {"ok": True, "trust": answer}


def raise_host_gone(number: int, frame: Any) -> None:
    raise HostGone(f"signal {number}")


def main(arguments: list[str]) -> int:
    """Serve one session on standard input and output; `arguments` is the folder on the device."""
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
    session = Session(Wire(0, writer), root)
    try:
        session.serve()
    except HostGone:
        return 0
    finally:
        session.close()
    return 0
