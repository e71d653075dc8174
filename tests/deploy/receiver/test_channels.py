from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeawq.deploy.receiver.limits import MAX_CHANNELS
from tests.deploy.receiver.driver import CHUNK, Joined, Wire, describe, store_name

Join = Callable[..., Joined]


@pytest.fixture
def join(wire: Wire) -> Iterator[Join]:
    """Join the session of `wire`, which has planned something."""
    opened: list[Joined] = []

    def start(secret: str = "") -> Joined:
        answer = wire.ask("channels")
        opened.append(Joined(answer["folder"], secret or answer["secret"]))
        return opened[-1]

    yield start
    for channel in opened:
        channel.kill()


def put_range(channel: Wire, data: bytes, numbers: range) -> None:
    for number in numbers:
        channel.put(0, data[number * CHUNK : (number + 1) * CHUNK], number)


def test_several_channels_bring_one_file(wire: Wire, join: Join, root: Path) -> None:
    data, small = os.urandom(12 * CHUNK), os.urandom(30)
    wire.begin(describe(bundle__w=data, site__a=small, chunked=("bundle__w",)))
    channels = [join() for _ in range(3)]
    assert all(channel.read() == {"ok": True, "joined": True} for channel in channels)

    def work(number: int) -> None:
        if number == 2:
            channels[number].put(1, small)
        put_range(channels[number], data, range(number, 12, 4))
        assert channels[number].ask("flush") == {"ok": True}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    put_range(wire, data, range(3, 12, 4))
    for thread in threads:
        thread.join()
    assert wire.ask("flush")["missing"] == []
    identity = wire.ask("commit")["id"]
    assert (root / "releases" / identity / "bundle/w").read_bytes() == data
    assert (root / "releases" / identity / "site/a").read_bytes() == small
    assert [channel.end() for channel in channels] == [0, 0, 0]
    assert wire.end() == 0 and wire.stderr == ""


def test_a_wrong_secret_opens_nothing(wire: Wire, join: Join) -> None:
    wire.begin(describe(site__a=b"a"))
    secret = wire.ask("channels")["secret"]
    assert len(secret) == 32
    for wrong in ("0" * 32, secret[:-1] + ("1" if secret[-1] == "0" else "0"), "x" * 32):
        stranger = join(wrong)
        assert stranger.stdout.read() == b"" and stranger.end() == 0
    right = join()
    assert right.read()["joined"]
    right.put(0, b"a")
    assert right.ask("flush") == {"ok": True} and wire.ask("flush")["missing"] == []


def test_no_more_than_the_limit_may_join(wire: Wire, join: Join) -> None:
    wire.begin(describe(site__a=b"a"))
    channels = [join() for _ in range(MAX_CHANNELS)]
    assert all(channel.read()["joined"] for channel in channels)
    for _ in range(2):
        late = join()
        assert late.stdout.read() == b"" and late.end() != 0
    channels[-1].put(0, b"a")
    assert channels[-1].ask("flush") == {"ok": True} and wire.ask("commit")["new"]


def test_others_cannot_even_reach_the_socket(wire: Wire, root: Path) -> None:
    wire.begin(describe(site__a=b"a"))
    wire.ask("channels")
    assert (root / "lock").stat().st_mode & 0o077 == 0


def test_a_channel_that_dies_takes_nothing_with_it(wire: Wire, join: Join, root: Path) -> None:
    data = os.urandom(4 * CHUNK)
    wire.begin(describe(bundle__w=data, chunked=("bundle__w",)))
    dying = join()
    assert dying.read()["joined"]
    put_range(dying, data, range(1))
    with contextlib.suppress(BrokenPipeError):
        dying.send({"op": "put", "file": 0, "chunk": 1, "length": CHUNK}, data[:500])  # cut in the middle
        dying.process.kill()
    dying.end()
    other = join()
    assert other.read()["joined"]
    put_range(other, data, range(1, 3))
    assert other.ask("flush") == {"ok": True}
    put_range(wire, data, range(3, 4))
    assert wire.ask("flush")["missing"] in ([], [[0, [[0, 1]]]])
    if wire.ask("flush")["missing"]:  # the first chunk may not have been read before the end was seen
        put_range(wire, data, range(1))
    assert wire.ask("commit")["new"]
    assert (root / "store" / store_name(data)[:2] / store_name(data)).read_bytes() == data


@pytest.mark.parametrize(
    "request_line",
    [{"op": "commit"}, {"op": "switch"}, {"op": "lock", "owner": "x"}, {"op": "put", "file": 9, "length": 1}, {}],
)
def test_a_channel_carries_content_only(wire: Wire, join: Join, request_line: dict[str, object]) -> None:
    wire.begin(describe(site__a=b"a"))
    channel = join()
    assert channel.read()["joined"]
    channel.send(request_line)
    answer = channel.read()
    assert answer["code"] == "protocol" and answer["fatal"]
    assert channel.end() == 0
    wire.put(0, b"a")
    assert wire.ask("flush")["missing"] == [], "the session goes on"


def test_damage_on_one_channel_ends_that_channel(wire: Wire, join: Join) -> None:
    data = os.urandom(2 * CHUNK)
    wire.begin(describe(bundle__w=data, chunked=("bundle__w",)))
    channel = join()
    assert channel.read()["joined"]
    channel.put(0, bytes(CHUNK), 1)
    answer = channel.read()
    assert answer["code"] == "hash" and answer["fatal"]
    put_range(wire, data, range(2))
    assert wire.ask("flush")["missing"] == []


def test_channels_end_with_the_session(wire: Wire, join: Join, root: Path) -> None:
    wire.begin(describe(site__a=b"a"))
    channel = join()
    assert channel.read()["joined"]
    assert wire.end() == 0
    assert channel.process.wait(20) == 0 and not (root / "lock").exists()
