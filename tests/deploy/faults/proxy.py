"""A TCP proxy in front of an sshd that resets the connection after a number of bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading


class ResettingProxy:
    """Forwards to `port`; a connection is reset (RST, both sides) after `limit` bytes in `direction`, up or down.

    With a limit of -1 nothing is reset, and the bytes are counted in `passed`.
    """

    def __init__(self, port: int, *, direction: str = "up", limit: int = -1) -> None:
        self.target = port
        self.direction = direction
        self.limit = limit
        self.passed = {"up": 0, "down": 0}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.threads: list[threading.Thread] = []
        self.closing = False
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self.threads.append(thread)

    def _accept(self) -> None:
        while not self.closing:
            if not select.select([self.listener], [], [], 0.05)[0]:
                continue
            with contextlib.suppress(OSError):
                client, _ = self.listener.accept()
                thread = threading.Thread(target=self._forward, args=(client,), daemon=True)
                thread.start()
                self.threads.append(thread)

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            ways = {client: ("up", server), server: ("down", client)}
            with contextlib.suppress(OSError):
                while not self.closing:
                    for source in select.select(list(ways), [], [], 0.05)[0]:
                        direction, sink = ways[source]
                        data = source.recv(65536)
                        if not data:
                            return
                        rest = self.limit - self.passed[direction]
                        if self.limit >= 0 and direction == self.direction and len(data) >= rest:
                            sink.sendall(data[: max(rest, 0)])
                            for end in ways:  # linger 0: a reset instead of an orderly end
                                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            return
                        sink.sendall(data)
                        self.passed[direction] += len(data)

    def close(self) -> None:
        """End everything."""
        self.closing = True
        for thread in self.threads:
            thread.join(10)
        self.listener.close()
