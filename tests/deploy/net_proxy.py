"""A TCP proxy for tests that breaks connections: after a number of bytes, or by going silent."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator


class NetProxy:
    """Forwards connections to `target`. `budgets` are the bytes each next connection may carry to the target."""

    def __init__(self, target: int, budgets: list[int | None]) -> None:
        self.target = target
        self.budgets = budgets  # None: without end; when the list is used up, the last entry counts
        self.connections = 0
        self.silent = threading.Event()  # set: nothing is forwarded any more, nothing is closed
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and reset what is open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for stream in self._open:
            _reset(stream)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            budget = self.budgets[min(self.connections, len(self.budgets) - 1)]
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            self._open += [near, far]
            threading.Thread(target=self._pump, args=(near, far, budget), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, None), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, budget: int | None) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536 if budget is None else min(65536, budget)):
                if self.silent.is_set():
                    continue
                target.sendall(block)
                if budget is not None:
                    budget -= len(block)
                    if not budget:
                        break
        if not self.silent.is_set():
            _reset(source)
            _reset(target)


def _reset(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # No lingering: the other side sees a reset, as from a router that has forgotten the connection.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.shutdown(socket.SHUT_RDWR)
        stream.close()


@contextlib.contextmanager
def run_proxy(target: int, *budgets: int | None) -> Iterator[NetProxy]:
    """Run a proxy to the loopback port `target`."""
    proxy = NetProxy(target, list(budgets) or [None])
    try:
        yield proxy
    finally:
        proxy.close()
