from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeawq.deploy.connect import connect
from edgeawq.deploy.local import LocalTransport
from edgeawq.deploy.retry import RetryPolicy, run_with_retry
from edgeawq.deploy.transport import Transport
from edgeawq.errors import (
    AuthenticationError,
    DeviceLockedError,
    DeviceUnfitError,
    EdgeawqError,
    HealthCheckError,
    HostKeyError,
    TransferError,
    UnreachableError,
    UsageError,
)
from tests.deploy.net_proxy import run_proxy
from tests.deploy.sshd import SshServer, install_own_ssh


class Run:
    """One call of run_with_retry with work that fails as `errors` say; time does not pass."""

    def __init__(self, *errors: EdgeawqError, policy: RetryPolicy | None = None, gains: tuple[int, ...] = ()) -> None:
        self.errors = list(errors)
        self.policy = policy or RetryPolicy()
        self.gains = list(gains)
        self.done_bytes = 0
        self.slept: list[float] = []
        self.noted: list[tuple[int, float, str]] = []
        self.connected = 0

    def connect(self) -> Transport:
        self.connected += 1
        if self.errors and isinstance(self.errors[0], UnreachableError):
            raise self.errors.pop(0)
        return LocalTransport()

    def work(self, transport: Transport) -> str:
        if self.gains:
            self.done_bytes += self.gains.pop(0)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def start(self, random: Callable[[], float] = lambda: 1.0) -> str:
        return run_with_retry(
            self.connect,
            self.work,
            self.policy,
            lambda failures, delay_s, error: self.noted.append((failures, delay_s, error.what)),
            progress=lambda: self.done_bytes,
            sleep=self.slept.append,
            random=random,
        )


def test_success_needs_no_second_try() -> None:
    run = Run()
    assert run.start() == "done" and run.connected == 1 and run.slept == [] and run.noted == []


def test_waits_twice_as_long_each_time_up_to_the_limit() -> None:
    run = Run(*[TransferError("cut")] * 7, policy=RetryPolicy(attempts=8, first_delay_s=1, max_delay_s=30))
    assert run.start() == "done"
    assert run.slept == [1, 2, 4, 8, 16, 30, 30] and run.connected == 8
    assert run.noted[0] == (1, 1, "cut") and run.noted[-1] == (7, 30, "cut")


def test_gives_up_with_the_last_error() -> None:
    run = Run(
        TransferError("first"), UnreachableError("second"), TransferError("third"), policy=RetryPolicy(attempts=3)
    )
    with pytest.raises(TransferError, match="third"):
        run.start()
    assert run.connected == 3 and len(run.slept) == 2


def test_one_attempt_is_no_second_try() -> None:
    run = Run(TransferError("cut"), policy=RetryPolicy(attempts=1))
    with pytest.raises(TransferError):
        run.start()
    assert run.slept == []


@pytest.mark.parametrize(
    "error",
    [
        HostKeyError("x"),
        AuthenticationError("x"),
        DeviceUnfitError("x"),
        DeviceLockedError("x"),
        HealthCheckError("x"),
        UsageError("x"),
    ],
)
def test_what_another_connection_cannot_cure_is_raised_at_once(error: EdgeawqError) -> None:
    run = Run(error)
    with pytest.raises(type(error)):
        run.start()
    assert run.slept == [] and run.connected == 1


def test_an_interrupt_is_not_retried() -> None:
    def interrupt(transport: Transport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with_retry(LocalTransport, interrupt, RetryPolicy(), lambda *_: pytest.fail("retried"))


def test_progress_begins_the_count_anew() -> None:
    run = Run(*[TransferError("cut")] * 9, policy=RetryPolicy(attempts=3), gains=(5, 0, 7, 0, 1, 0, 2, 0, 1))
    assert run.start() == "done"
    assert run.slept == [1, 2, 1, 2, 1, 2, 1, 2, 1]


def test_going_back_is_no_progress() -> None:
    run = Run(*[TransferError("cut")] * 9, policy=RetryPolicy(attempts=3), gains=(5, -5, 3))
    with pytest.raises(TransferError):
        run.start()
    assert run.connected == 3


def test_jitter_spreads_over_the_whole_delay() -> None:
    run = Run(TransferError("cut"), TransferError("cut"))
    values = iter([0.25, 0.5])
    run.start(random=lambda: next(values))
    assert run.slept == [0.25, 1.0]
    run = Run(TransferError("cut"), policy=RetryPolicy(jitter=False))
    run.start(random=lambda: 0.0)
    assert run.slept == [1.0]


def test_very_many_failures_overflow_nothing() -> None:
    assert RetryPolicy(attempts=10_000).delay_s(9_999, lambda: 1.0) == 30.0


@pytest.mark.parametrize("values", [{"attempts": 0}, {"first_delay_s": -1}, {"first_delay_s": 10, "max_delay_s": 5}])
def test_refuses_a_policy_that_makes_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RetryPolicy(**values)  # type: ignore[arg-type]


@pytest.mark.server
@pytest.mark.parametrize("kind", ["ssh", "openssh"])
def test_a_real_upload_through_a_line_that_breaks(
    server: SshServer, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every connection carries a little more than 300 kB; the file has 1 MB and goes on where it was cut."""
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    data = os.urandom(1_000_000)
    target = tmp_path / "target"
    cuts: list[str] = []

    def work(transport: Transport) -> int:
        there = int(transport.run(f"wc -c < {target} || echo 0").stdout or 0)
        process = transport.start(f"exec cat >> {target}")
        try:
            for start in range(there, len(data), 20_000):
                process.write(data[start : start + 20_000])
            process.close_input()
            if process.read(1) or process.wait():
                raise TransferError("the end did not come")
        finally:
            process.terminate()
        return there

    with run_proxy(server.port, 0x50000, 0x50000, 0x50000, 0x50000, None) as proxy:
        device = server.device(transport=kind, port=proxy.port, known_hosts_file=str(tmp_path / "known"))
        kind_and_key = " ".join(server.host_key.with_suffix(".pub").read_text().split()[:2])
        (tmp_path / "known").write_text(f"[127.0.0.1]:{proxy.port} {kind_and_key}\n")
        began_at = run_with_retry(
            lambda: connect(device),
            work,
            RetryPolicy(attempts=3),
            lambda failures, delay_s, error: cuts.append(error.what),
            progress=lambda: target.stat().st_size if target.exists() else 0,
            sleep=lambda seconds: None,
        )
        assert proxy.connections >= 3 and began_at > 0 and len(cuts) == proxy.connections - 1
    assert target.read_bytes() == data
