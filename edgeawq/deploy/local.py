"""This machine as a device: the same commands and the same receiver, through pipes instead of SSH."""

from __future__ import annotations

import subprocess

from edgeawq.deploy.pipe_process import PipeProcess
from edgeawq.deploy.transport import STALL_TIMEOUT_S, RemoteProcess, TransportBase


class LocalTransport(TransportBase):
    """A transport to this machine."""

    @property
    def address(self) -> str:
        """What messages call this machine."""
        return "this machine"

    def start(self, command: str, *, stall_timeout_s: float = STALL_TIMEOUT_S) -> RemoteProcess:
        """Start a /bin/sh command with pipes on its standard input and output."""
        return PipeProcess(["/bin/sh", "-c", command], stall_timeout_s=stall_timeout_s)

    def run_terminal(self, command: str) -> int:
        """Run a /bin/sh command on this process's own terminal or pipes; return its exit code."""
        with subprocess.Popen(["/bin/sh", "-c", command]) as child:
            while True:
                try:
                    code = child.wait()
                    break
                except KeyboardInterrupt:
                    continue  # the child has had the same Ctrl-C and decides itself what it means
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> LocalTransport:
        return self
