"""Batched packets against a real OpenSSH server: what arrives is what was sent, also while keys are renewed."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgeawq.deploy.connect import connect
from edgeawq.deploy.ssh import SshTransport
from edgeawq.deploy.ssh_packets import PACKET_OVERHEAD_BYTES, BatchPacketizer, PacketSealer, seal_data
from edgeawq.deploy.transport import Transport
from tests.deploy.sshd import SshServer

pytestmark = pytest.mark.server

HASH = "exec sha256sum"


def packets_of(transport: Transport) -> BatchPacketizer:
    assert isinstance(transport, SshTransport)
    packets = transport._transports[-1].packetizer
    assert isinstance(packets, BatchPacketizer)
    return packets


def send_and_hash(transport: Transport, data: bytes, sizes: Iterator[int]) -> str:
    process = transport.start(HASH)
    rest = memoryview(data)
    while rest:
        size = next(sizes)
        process.write(rest[:size])
        rest = rest[size:]
    process.close_input()
    answer = process.read(200)
    assert process.wait() == 0
    return answer.decode().split()[0]


def random_sizes() -> Iterator[int]:
    while True:
        yield random.choice([1, 15, 16, 17, 1000, 32703, 32704, 32705, 65536, 300_000, 1_048_576, 3_000_001])


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr"])
def test_what_arrives_is_what_was_sent(server: SshServer, cipher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop()
    server.extra_config = f"Ciphers {cipher}"
    server.start()
    data = os.urandom(20_000_003)
    with connect(server.device()) as transport:
        assert packets_of(transport).can_batch == ("gcm" in cipher)
        assert send_and_hash(transport, data, random_sizes()) == hashlib.sha256(data).hexdigest()
        copy = transport.run("head -c 3000000 /dev/zero").stdout
        assert copy == bytes(3_000_000)


@pytest.mark.parametrize("who", ["host", "device"])
def test_keys_are_renewed_in_the_middle(server: SshServer, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if who == "device":
        server.stop()
        server.extra_config = "RekeyLimit 1M"
        server.start()
    else:
        monkeypatch.setattr(BatchPacketizer, "REKEY_BYTES", 1_000_000)
    exchanges: list[int] = []
    original = BatchPacketizer.set_outbound_cipher

    def count(self: BatchPacketizer, *arguments: object, **options: object) -> None:
        exchanges.append(1)
        original(self, *arguments, **options)

    monkeypatch.setattr(BatchPacketizer, "set_outbound_cipher", count)
    parts = [os.urandom(6_000_001) for _ in range(3)]
    answers: dict[int, str] = {}
    with connect(server.device()) as transport:

        def send(number: int) -> None:
            answers[number] = send_and_hash(transport, parts[number], random_sizes())

        threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        # Commands that end in the middle of a key exchange must not stop the others.
        while any(thread.is_alive() for thread in threads):
            assert transport.run("echo short").stdout == b"short\n"
        for thread in threads:
            thread.join(60)
        assert packets_of(transport).can_batch
    assert answers == {number: hashlib.sha256(part).hexdigest() for number, part in enumerate(parts)}
    assert len(exchanges) > 3


def test_a_window_that_is_full_is_waited_for(server: SshServer, tmp_path: Path) -> None:
    data = os.urandom(9_000_000)  # more than the window and all buffers
    with connect(server.device()) as transport:
        gate = tmp_path / "gate"
        process = transport.start(f"while [ ! -e {gate} ]; do sleep 0.05; done; exec sha256sum")
        opener = threading.Timer(0.5, gate.touch)
        opener.start()
        process.write(data)
        opener.join()
        process.close_input()
        assert process.read(200).decode().split()[0] == hashlib.sha256(data).hexdigest()
        process.wait()


def test_a_packet_is_what_rfc_5647_says() -> None:
    key, nonce = os.urandom(16), os.urandom(4) + (2**64 - 1).to_bytes(8, "big")
    sealer = PacketSealer(AESGCM(key), nonce)
    for counter in (2**64 - 1, 0, 1):  # the counter goes round (RFC 5647 section 7.1)
        block = os.urandom(random.randrange(1, 40_000))
        out = memoryview(bytearray(len(block) + PACKET_OVERHEAD_BYTES))
        plain = memoryview(bytearray(len(block) + PACKET_OVERHEAD_BYTES))
        size = seal_data(sealer, 7, memoryview(block), os.urandom(32), plain, out)
        packet = bytes(out[:size])
        length = int.from_bytes(packet[:4], "big")
        assert size == 4 + length + 16 and length % 16 == 0
        text = AESGCM(key).decrypt(nonce[:4] + counter.to_bytes(8, "big"), packet[4:], packet[:4])
        padding = text[0]
        assert padding >= 4 and text[1] == 94 and text[2:6] == (7).to_bytes(4, "big")
        assert text[6:10] == len(block).to_bytes(4, "big") and text[10 : len(text) - padding] == block
