"""A profile over a pipe: the device says what CPU it is, gets the probe object, and tells how it goes on.

Device → host, a line of JSON each: {"kernel": {"isa", "triple", "cpu", "features"}}, then {"progress": {…}} again and
again, at last {"profile": {…}} or {"error": {"what", "remedy"}}. Host → device: eight bytes, big-endian, with the
length of the object (0: there is none), the object, and nothing more. An input that ends before the profile is Ctrl-C.
"""

from __future__ import annotations

import _thread
import json
import threading
from dataclasses import asdict, replace
from typing import BinaryIO

from edgeawq.errors import EdgeawqError, ProfileError
from edgeawq.profiling.json_values import to_json
from edgeawq.profiling.measure.device import ProfileOptions, measure_device
from edgeawq.profiling.measure.plan import DONE, Progress
from edgeawq.runtime.native import choose_kernel
from packager.manifest_reader import read_manifest

LENGTH_BYTES = 8
MAX_PROBE_BYTES = 4 << 20
BEAT_S = 5.0  # between two signs of life, so that the host can tell a long stage from a lost connection


def serve_profile(options: ProfileOptions, source: BinaryIO, sink: BinaryIO) -> int:
    """Measure this device for a host at the other end of two pipes; the exit code."""
    lock = threading.Lock()
    done = threading.Event()
    last: dict[str, object] = {"stage": "starting", "share": 0.0, "seconds_left": None}

    def say(message: dict[str, object]) -> None:
        with lock:
            sink.write(json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            sink.flush()

    def show(progress: Progress) -> None:
        if progress.stage == DONE:
            done.set()  # what is left takes a moment: too late to stop it
        last.update(asdict(progress))
        say({"progress": last})

    def beat() -> None:
        while not done.wait(BEAT_S):
            try:
                say({"progress": last})
            except OSError:
                return

    def watch() -> None:
        # The host closes our input to stop us; it has nothing else to say.
        if not source.read(1) and not done.is_set():
            _thread.interrupt_main()

    try:
        assert options.bundle is not None
        kernel = choose_kernel(read_manifest(options.bundle).kernels)
        entry = {"isa": kernel.isa, "triple": kernel.triple, "cpu": kernel.cpu, "features": list(kernel.features)}
        say({"kernel": entry})
        probe = read_probe(source)
        missing = "" if probe else "the host could not build the probes"
        for task in (beat, watch):
            threading.Thread(target=task, daemon=True).start()
        options = replace(options, isa=kernel.isa, probe=probe, probe_missing=missing)
        profile = measure_device(options, on_progress=show)
        done.set()
        say({"profile": to_json(profile)})
    except EdgeawqError as error:
        done.set()
        say({"error": {"what": error.what, "remedy": error.remedy}})
        return error.exit_code
    return 0


def read_probe(source: BinaryIO) -> bytes | None:
    """The probe object from the host; None when it sends none. ProfileError for a wrong length."""
    length = int.from_bytes(_read_exactly(source, LENGTH_BYTES), "big")
    if length > MAX_PROBE_BYTES:
        raise ProfileError(f"the host wants to send a probe of {length} bytes, the limit is {MAX_PROBE_BYTES}")
    return _read_exactly(source, length) if length else None


def _read_exactly(source: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count:
        block = source.read(count - len(data))
        if not block:
            raise ProfileError("the host went away before it had sent the probe", remedy="try again")
        data += block
    return data
