"""The health check: a release's golden prompt, run in its own folder before anything points at it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from .description import check_requirements
from .home import Home
from .limits import MAX_OUTPUT_BYTES
from .refusal import HostGone
from .releases import read_release
from .wire import Wire


def check_release(home: Home, identity: str, timeout_s: float, wire: Wire) -> dict[str, Any]:
    """Run the golden prompt of a release and return the answer for the host; the outcome goes into state.json."""
    check_requirements(read_release(home, identity))
    folder = home.path("releases", identity)
    command = [sys.executable, "-m", "edgeawq", "run", os.path.join(folder, "bundle"), "--golden", "--json"]
    started = time.monotonic()
    code, output, errors = run_bounded(command, make_environment(folder), timeout_s, folder=home.root, wire=wire)
    result = parse_last_line(output)
    seconds = round(time.monotonic() - started, 3)
    if code is None:
        reason = f"the health check did not end within {timeout_s:.0f} s"
    elif code != 0 or result.get("ok") is not True:
        detail = ": the golden prompt's tokens are not the expected ones" if "ok" in result else ""
        reason = f"the health check failed (exit code {code}){detail}"
    else:
        home.remember(identity, {"health": "good", "seconds": seconds})
        return {"ok": True, "result": result, "seconds": seconds}
    home.remember(identity, {"health": "bad", "reason": reason})
    home.note("check-failed", release=identity, reason=reason)
    tail = errors.decode("utf-8", "replace")[-2000:].strip()
    return {"ok": False, "code": "health", "what": reason, "stderr": tail, "result": result, "seconds": seconds}


def make_environment(folder: str) -> dict[str, str]:
    """Return the environment in which a release's own edgeawq runs, and nothing else of this device's Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.path.join(folder, "site")
    environment["PYTHONNOUSERSITE"] = "1"
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUTF8"] = "1"
    return environment


def run_bounded(
    command: list[str], environment: dict[str, str], timeout_s: float, *, folder: str, wire: Wire
) -> tuple[int | None, bytes, bytes]:
    """Run `command`; return exit code (None: too slow, ended), output and errors, each cut to a limit."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
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
                watched = [*open_pipes, wire.reader]
                for pipe in select.select(watched, [], [], 0.1)[0]:
                    if pipe == wire.reader:
                        # The host has nothing to say now: this is the end of the connection.
                        raise HostGone("the connection ended during the health check")
                    data = os.read(pipe, 65536)
                    kept[pipe] = (kept[pipe] + data)[-MAX_OUTPUT_BYTES:]
                    if not data:
                        open_pipes.remove(pipe)
                wire.say_alive()
            return child.returncode, kept[child.stdout.fileno()], kept[child.stderr.fileno()]
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)


def parse_last_line(output: bytes) -> dict[str, Any]:
    """Return the JSON object at the end of a command's output; an empty one if there is none."""
    text = output.decode("utf-8", "replace").strip()
    for candidate in (text, text.rpartition("\n")[2]):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(candidate)
            if isinstance(found, dict):
                return found
    return {}
