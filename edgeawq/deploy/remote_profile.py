"""`edgeawq profile NAME`: the release on the device measures it; the probe object is built here and sent along."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.remote_chat import NOTHING_PUSHED
from edgeawq.deploy.transport import RemoteProcess, Transport, quote_words
from edgeawq.errors import DeployError, TransferError

STALL_TIMEOUT_S = 120.0
MAX_LINE_BYTES = 20 << 20
MAX_TEXT = 500
LENGTH_BYTES = 8

# (isa, triple, cpu, features) → the object for that CPU; empty where it cannot be built
BuildProbe = Callable[[str, str, str, tuple[str, ...]], bytes]


@dataclass(frozen=True)
class RemoteProgress:
    """Where the device is. share: of the whole, 0 … 1."""

    stage: str
    share: float
    seconds_left: float | None


def run_remote_profile(
    transport: Transport,
    device: Device,
    arguments: list[str],
    build_probe: BuildProbe,
    on_progress: Callable[[RemoteProgress], None],
) -> Any:
    """Measure a device with the release that runs there; return the profile as plain data, not yet checked.

    Ctrl-C asks the device to stop and waits for what it has measured until then. KeyboardInterrupt when that is
    nothing, or at a second one. DeployError when nothing has been pushed, when the release is older than profiles, and
    with what the device itself says went wrong.
    """
    is_stopping = False
    process = transport.start(build_command(device, arguments), stall_timeout_s=STALL_TIMEOUT_S)
    try:
        messages = Messages(process)
        kernel = _expect_kernel(process, device, messages)
        probe = build_probe(*kernel)
        process.write(len(probe).to_bytes(LENGTH_BYTES, "big") + probe)
        while True:
            try:
                found = _follow(messages, on_progress)
                break
            except KeyboardInterrupt:
                if is_stopping:
                    raise
                is_stopping = True
                process.close_input()
        process.close_input()
        process.wait()
    except BaseException:
        process.terminate()
        raise
    if found is None and is_stopping:
        raise KeyboardInterrupt
    if found is None:
        raise DeployError(f"{device.name} ended the measurement: {process.stderr_tail()}", remedy="try again")
    return found


def build_command(device: Device, arguments: list[str]) -> str:
    """The /bin/sh command that profiles the release which is current at that moment."""
    return (
        f"root={quote_words([device.root])}; "
        f'[ -x "$root/bin/edgeawq" ] && [ -d "$root/current/" ] || exit {NOTHING_PUSHED}; '
        f'exec sh "$root/bin/edgeawq" profile @bundle --serve {quote_words(arguments)}'
    )


class Messages:
    """The JSON objects that a device prints, a line each. Goes on after a KeyboardInterrupt, unlike a generator."""

    def __init__(self, process: RemoteProcess) -> None:
        self._process = process
        self._rest = b""

    def read(self) -> dict[str, Any] | None:
        """The next one, None at the end; TransferError for anything else than an object in a line."""
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_LINE_BYTES:
                raise TransferError(f"the device sent a line of more than {MAX_LINE_BYTES} bytes")
            block = self._process.read(1 << 16)
            if not block:
                return None
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise TransferError("the device sent something that is no answer of edgeawq")
        return value


def _expect_kernel(process: RemoteProcess, device: Device, messages: Messages) -> tuple[str, str, str, tuple[str, ...]]:
    first = messages.read()
    if first is None:
        if process.wait() == NOTHING_PUSHED:
            raise DeployError(
                f"nothing has been pushed to {device.name!r} yet", remedy=f"edgeawq push {device.name} MODEL"
            )
        raise DeployError(
            f"the release on {device.name!r} cannot be profiled: {process.stderr_tail() or 'it said nothing'}",
            remedy=f"a release of an older edgeawq has no profiler: edgeawq push {device.name} MODEL",
        )
    _raise_error(first)
    kernel = first.get("kernel")
    if not isinstance(kernel, dict):
        raise TransferError("the device did not say what CPU it is")
    features = kernel.get("features")
    words = [kernel.get(key) for key in ("isa", "triple", "cpu")]
    if not isinstance(features, list) or not all(
        isinstance(word, str) and len(word) < 100 for word in words + features
    ):
        raise TransferError("the device did not say what CPU it is")
    isa, triple, cpu = map(str, words)
    return isa, triple, cpu, tuple(features)


def _follow(messages: Messages, on_progress: Callable[[RemoteProgress], None]) -> Any:
    """The profile; None when the device ends without one."""
    while (message := messages.read()) is not None:
        _raise_error(message)
        if "profile" in message:
            return message["profile"]
        progress = message.get("progress")
        if isinstance(progress, dict):
            on_progress(_read_progress(progress))
    return None


def _read_progress(value: dict[str, Any]) -> RemoteProgress:
    share, left = value.get("share"), value.get("seconds_left")
    return RemoteProgress(
        stage=_line(value.get("stage")),
        share=min(max(float(share), 0.0), 1.0) if isinstance(share, (int, float)) else 0.0,
        seconds_left=float(left) if isinstance(left, (int, float)) and 0 <= left < 1e7 else None,
    )


def _raise_error(message: dict[str, Any]) -> None:
    error = message.get("error")
    if isinstance(error, dict):
        raise DeployError(_line(error.get("what")), remedy=_line(error.get("remedy")))


def _line(value: object) -> str:
    """Text of a device, fit for a terminal."""
    text = value if isinstance(value, str) else ""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT])
