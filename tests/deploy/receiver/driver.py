"""Drives a receiver line by line, as on the wire: a host that makes mistakes, or means harm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from edgeawq.deploy.receiver.description import name_content
from edgeawq.deploy.receiver_program import read_join_program, read_program

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
CHUNK = 100_000  # of the content that describe() cuts


class Wire:
    """A receiver process, started as the host starts it, and the raw ends of its pipes."""

    def __init__(self, root: Path, *, prelude: str = "") -> None:
        bootstrap, program = read_program()
        self.root = root
        self._start([sys.executable, "-I", "-c", prelude + bootstrap, str(root)])
        self.stdin.write(program)
        self.stdin.flush()
        self.greeting = self.read()

    def _start(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, message: dict[str, Any] | bytes, payload: bytes = b"") -> None:
        """Send a request, or any bytes."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        self.stdin.write(data + payload)
        self.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Return the next answer, past signs of life."""
        while True:
            line = self.stdout.readline()
            assert line, f"the receiver has ended: {self.end()}, {self.stderr}"
            answer = json.loads(line)
            if "event" not in answer:
                assert isinstance(answer, dict)
                return answer

    def ask(self, op: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        """Send a request and return its answer."""
        self.send({"op": op, **arguments}, payload)
        return self.read()

    def plan(self, release: dict[str, Any] | bytes, **changes: Any) -> dict[str, Any]:
        """Send a release's description, compressed."""
        data = release if isinstance(release, bytes) else json.dumps(release).encode()
        packed = zlib.compress(data)
        return self.ask("plan", packed, **{"size": len(data), "length": len(packed), **changes})

    def begin(self, release: dict[str, Any], owner: str = "me") -> list[Any]:
        """Take the lock, plan, assemble; return what is missing."""
        locked = self.ask("lock", owner=owner)
        assert locked["ok"], locked
        planned = self.plan(release)
        assert planned["ok"], planned
        return list(self.ask("assemble")["missing"])

    def put(self, file: int, data: bytes, chunk: int = 0, **changes: Any) -> None:
        """Send content; there is no answer when it goes well."""
        self.send({"op": "put", "file": file, "chunk": chunk, "length": len(data), **changes}, data)

    def put_all(self, contents: list[bytes], missing: list[Any], cut: int = CHUNK) -> None:
        """Send everything that `missing` names; `contents` are those of the planned release's files."""
        for index, *runs in missing:
            if not runs:
                self.put(index, contents[index])
            for first, count in runs[0] if runs else []:
                for number in range(first, first + count):
                    self.put(index, contents[index][number * cut : (number + 1) * cut], number)

    def end(self) -> int:
        """Close the connection; return the exit code. What it wrote to standard error is then in `stderr`."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        code = self.process.wait(30)
        assert self.process.stderr
        self.stderr = self.process.stderr.read().decode()
        self.process.stderr.close()
        self.stdout.close()
        return code

    def kill(self) -> None:
        """End it at once; may be called after end()."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.process.stderr):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Joined(Wire):
    """One more channel of a receiver's session."""

    def __init__(self, folder: str, secret: str) -> None:
        self._start([sys.executable, "-I", "-c", read_join_program(), folder])
        self.send(secret.encode())


def sha(data: bytes) -> str:
    """The SHA-256 of `data`, as releases write it."""
    return hashlib.sha256(data).hexdigest()


def cut(data: bytes, length: int = CHUNK) -> list[list[Any]]:
    """The chunks of `data`, as releases list them."""
    return [[len(data[at : at + length]), sha(data[at : at + length])] for at in range(0, len(data), length)]


def store_name(data: bytes, length: int = CHUNK) -> str:
    """What the store calls `data` cut into chunks."""
    return name_content(tuple((int(size), str(digest)) for size, digest in cut(data, length)))


def describe(*, chunked: tuple[str, ...] = (), **contents: bytes) -> dict[str, Any]:
    """A release of `contents`; "__" in a name stands for "/". Those named in `chunked` are cut into chunks."""
    files: list[dict[str, Any]] = []
    for name, data in contents.items():
        path = name.replace("__", "/")
        if name in chunked:
            files.append({"path": path, "chunks": cut(data)})
        else:
            files.append({"path": path, "sha256": sha(data), "size": len(data)})
    return {
        "format": "edgeawq-release",
        "format_version": 2,
        "name": "tiny",
        "profile": "host",
        "requires": {"machine": platform.machine(), "python": PYTHON},
        "files": files,
    }


def describe_answering(**contents: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """A release whose health check always goes well, with `contents` beside it; and all contents in order."""
    stub = b"print('{\"ok\": true}')\n" + b"#" + os.urandom(8).hex().encode()
    release = describe(site__edgeawq=stub, **contents)
    release["files"][0]["path"] = "site/edgeawq/__main__.py"
    return release, [stub, *contents.values()]


def install(root: Path) -> str:
    """Bring a release that answers to `root` in a session of its own; return its id. It is current then."""
    wire = Wire(root)
    try:
        release, contents = describe_answering()
        wire.put_all(contents, wire.begin(release))
        identity = str(wire.ask("commit")["id"])
        assert wire.ask("check", release=identity, timeout_s=60)["ok"]
        assert wire.ask("switch", release=identity)["ok"]
        assert wire.end() == 0 and wire.stderr == ""
    finally:
        wire.kill()
    return identity
