from __future__ import annotations

import io
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.pipe_process import PipeProcess
from edgeawq.deploy.transport import MAX_OUTPUT_BYTES, quote_words
from edgeawq.errors import TransferError


def test_runs_commands() -> None:
    with LocalTransport() as transport:
        result = transport.run("cat; echo err >&2; exit 3", stdin=b"in")
        assert (result.exit_code, result.stdout, result.stderr) == (3, b"in", b"err")
        assert transport.run("kill -9 $$").exit_code == -9


def test_copies_files(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    transport = LocalTransport()
    transport.put(io.BytesIO(data), str(tmp_path / "it's"))
    copy = io.BytesIO()
    transport.get(str(tmp_path / "it's"), copy, limit=len(data))
    assert copy.getvalue() == data and transport.exists(str(tmp_path / "it's"))
    assert not transport.exists(str(tmp_path / "other"))
    with pytest.raises(TransferError, match="limit of 10"):
        transport.get(str(tmp_path / "it's"), io.BytesIO(), limit=10)
    with pytest.raises(TransferError, match="other"):
        transport.get(str(tmp_path / "other"), io.BytesIO(), limit=10)


def test_a_command_that_prints_without_end_is_ended() -> None:
    with pytest.raises(TransferError, match=str(MAX_OUTPUT_BYTES)):
        LocalTransport().run("yes")


def test_a_silent_command_and_one_that_takes_nothing_are_given_up() -> None:
    with pytest.raises(TransferError, match="silent"):
        LocalTransport().run("sleep 60", stall_timeout_s=0.3)
    process = PipeProcess(["sleep", "60"], stall_timeout_s=0.3)
    with pytest.raises(TransferError, match="nothing could be sent"):
        process.write(bytes(1 << 22))
    process.terminate()


def test_writing_to_what_has_ended_says_why() -> None:
    process = PipeProcess(["/bin/sh", "-c", "echo the reason >&2"])
    with pytest.raises(TransferError, match="the reason"):
        for _ in range(1000):
            process.write(bytes(1 << 16))
    process.terminate()


@pytest.mark.parametrize("busy", ["writing", "reading"])
def test_another_thread_can_end_it_at_any_moment(busy: str) -> None:
    for delay_s in (0.0, 0.001, 0.02):
        process = PipeProcess([sys.executable, "-c", "import time; time.sleep(60)"])
        seen: list[object] = []

        def work(process: PipeProcess = process, seen: list[object] = seen) -> None:
            try:
                while busy == "writing":
                    process.write(bytes(1 << 20))
                seen.append(process.read(100))
            except TransferError as error:
                seen.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(delay_s)
        process.terminate()
        thread.join(20)
        assert not thread.is_alive() and len(seen) == 1
        assert isinstance(seen[0], TransferError) if busy == "writing" else seen[0] == b""


def test_quotes_words_for_the_shell() -> None:
    assert quote_words(["~/a b", "~", "it's", "$x"]) == "\"$HOME\"/'a b' \"$HOME\" 'it'\"'\"'s' '$x'"
    assert quote_words(["~user/x"]) == "'~user/x'"
