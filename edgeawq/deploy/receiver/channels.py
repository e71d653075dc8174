"""More channels for one session: another process hands its standard input and output over to the receiver.

One SSH channel carries at most its window in each round trip (2 MiB: 40 MB/s at 50 ms), so a push to a device far
away uses several. The process at the end of each further channel only passes its pipes through a Unix socket to the
receiver and waits: all that is received is known to one process, and there is one lock.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import threading

from .home import Home
from .incoming import Batch, Incoming, receive
from .limits import IDLE_TIMEOUT_S, MAX_CHANNELS
from .refusal import HostGone, Refusal, explain_os_error
from .wire import Wire

SECRET_BYTES = 32
SOCKET_NAME = "channels"


class Channels:
    """Listens in the lock's folder for processes of the same user that know the secret."""

    def __init__(self, home: Home, incoming: Incoming) -> None:
        self.home = home
        self.incoming = incoming
        self.secret = os.urandom(SECRET_BYTES // 2).hex()
        self.open_sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(home.path("lock"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fchmod(folder, 0o700)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(SOCKET_NAME, dir_fd=folder)
            # A socket's path has at most 107 bytes; this one is short wherever the folder is.
            self.listener.bind(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        finally:
            os.close(folder)
        self.listener.listen(MAX_CHANNELS)
        thread = threading.Thread(target=self._accept, name="channels", daemon=True)
        thread.start()

    def close(self) -> None:
        """Let go of all channels; the processes behind them end."""
        for listening in [self.listener, *self.open_sockets]:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def _accept(self) -> None:
        while len(self.threads) < MAX_CHANNELS:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # the session has ended
            self.open_sockets.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()
        self.listener.close()  # whoever comes now is refused and need not wait

    def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            connection.settimeout(IDLE_TIMEOUT_S)
            said, descriptors, _, _ = socket.recv_fds(connection, SECRET_BYTES, 2)
            if len(descriptors) == 2 and hmac.compare_digest(said, self.secret.encode()):
                serve_channel(Wire(*descriptors), self.incoming)
        except OSError:
            pass  # the process behind it has gone: its channel has ended, and the host notices
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()


def serve_channel(wire: Wire, incoming: Incoming) -> None:
    """Serve `put` and `flush` until the channel ends; any refusal ends it, because it may carry bytes of a `put`."""
    batch = Batch(incoming, wire)
    try:
        wire.send({"ok": True, "joined": True})
        while True:
            request = wire.read_line()
            if request.get("op") == "put":
                receive(wire, request, incoming, batch)
            elif request.get("op") == "flush":
                batch.store()
                wire.send({"ok": True})
            else:
                raise Refusal("protocol", "only put and flush are possible on a second channel")
    except HostGone:
        return
    except Refusal as refusal:
        answer = {"ok": False, "code": refusal.code, "what": refusal.what, **refusal.details, "fatal": True}
        with contextlib.suppress(HostGone):
            wire.send(answer)
    except OSError as error:
        with contextlib.suppress(HostGone):
            wire.send({"ok": False, **explain_os_error(error, incoming.home.root), "fatal": True})
    finally:
        batch.discard()
