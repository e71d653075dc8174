"""A TCP proxy that delivers everything later: a network with a long way and no limit of its own.

Run: python -m benchmarks.delay_proxy --target 127.0.0.1:22 --round-trip-ms 50 [--port 2222]
     python -m benchmarks.delay_proxy --self-test      how many MB/s it carries itself

Each direction has a thread that reads and one that writes; a block waits in between until half the round trip has
passed. TCP towards the proxy is a loopback connection, so the slow start of a real network is not part of this.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import queue
import socket
import threading
import time
from collections.abc import Iterator

BLOCK_BYTES = 1 << 18
# More than a fast network has under way in a long round trip: 64 MiB is 400 MB/s for 150 ms.
MAX_BLOCKS_UNDER_WAY = 256


def serve(listener: socket.socket, target: tuple[str, int], round_trip_s: float) -> None:
    """Accept connections for ever, and connect each to `target`."""
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_connect_through, args=(near, target, round_trip_s), daemon=True).start()


@contextlib.contextmanager
def run_delay_proxy(target: tuple[str, int], round_trip_s: float) -> Iterator[int]:
    """Run the proxy in a process of its own (it must not share the client's interpreter lock); yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(
        target=serve, args=(listener, target, round_trip_s), daemon=True
    )
    process.start()
    port = int(listener.getsockname()[1])
    listener.close()
    try:
        yield port
    finally:
        process.terminate()
        process.join()


def measure_capacity(megabytes: int, round_trip_s: float) -> float:
    """Return the MB/s that the proxy carries between a process that only sends and one that only counts."""
    sink = socket.create_server(("127.0.0.1", 0))
    total = megabytes * 1_000_000

    def send(port: int) -> None:
        block = bytes(BLOCK_BYTES)
        with socket.create_connection(("127.0.0.1", port)) as stream:
            for _ in range(total // BLOCK_BYTES):
                stream.sendall(block)

    with run_delay_proxy(("127.0.0.1", sink.getsockname()[1]), round_trip_s) as port, sink:
        began = time.perf_counter()
        sender = multiprocessing.get_context("fork").Process(target=send, args=(port,))
        sender.start()
        near, _ = sink.accept()
        buffer = bytearray(BLOCK_BYTES)
        count = 0
        with near:
            while size := near.recv_into(buffer):
                count += size
        sender.join()
        return count / 1e6 / (time.perf_counter() - began)


def _connect_through(near: socket.socket, target: tuple[str, int], round_trip_s: float) -> None:
    far = socket.create_connection(target)
    pumps = [
        threading.Thread(target=_pump, args=pair, daemon=True)
        for pair in ((near, far, round_trip_s / 2), (far, near, round_trip_s / 2))
    ]
    for stream in (near, far):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    near.close()
    far.close()


def _pump(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(MAX_BLOCKS_UNDER_WAY)
    writer = threading.Thread(target=_deliver, args=(under_way, target), daemon=True)
    writer.start()
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK_BYTES):
            under_way.put((time.monotonic() + delay_s, block))
    under_way.put((time.monotonic() + delay_s, b""))
    writer.join()


def _deliver(under_way: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    broken = False
    while True:
        due, block = under_way.get()
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            if not block:
                target.shutdown(socket.SHUT_WR)
        if not block:
            return
        if not broken:  # what still comes for a closed connection is read and dropped
            try:
                target.sendall(block)
            except OSError:
                broken = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="127.0.0.1:22", metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--round-trip-ms", type=float, default=50.0)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        print(f"{measure_capacity(2000, arguments.round_trip_ms / 1000):.0f} MB/s")
        return
    host, _, port = arguments.target.rpartition(":")
    listener = socket.create_server(("127.0.0.1", arguments.port))
    print(f"127.0.0.1:{listener.getsockname()[1]} -> {arguments.target}, {arguments.round_trip_ms:.0f} ms round trip")
    serve(listener, (host, int(port)), arguments.round_trip_ms / 1000)


if __name__ == "__main__":
    main()
