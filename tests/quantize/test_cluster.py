"""Blocks through an executor: threads here, and a real Dask cluster of two workers where the package is installed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import edgeawq
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import QuantizationError, UsageError
from edgeawq.quantize import block_jobs, cluster
from edgeawq.quantize.block_jobs import run_jobs
from edgeawq.quantize.cluster import Cluster
from edgeawq.quantize.pipeline import quantize_model
from tests.quantize.runs import SHAPE, quick_settings, read_folder
from tests.tiny_models import make_tiny_hf_checkpoint

LAYERS = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_hf_checkpoint(tmp_path / "model", 1, **{**SHAPE, "n_layers": LAYERS})


def quantize(folder: Path, model: Path, text: Path, where: Cluster | None, **settings: Any) -> dict[str, bytes]:
    chosen = quick_settings(bits=3, rounding_steps=4, **settings)
    quantize_model(
        open_model(str(model)), folder, chosen, calibration=text, n_threads=1, cluster=where, reference=str(model)
    )
    return read_folder(folder)


@pytest.mark.parametrize("method", ["awq", "awq+round"])
def test_the_bytes_are_those_of_one_process(tmp_path: Path, model: Path, text: Path, method: str) -> None:
    wanted = quantize(tmp_path / "local", model, text, None, method=method)
    with ThreadPoolExecutor(3) as pool:
        assert quantize(tmp_path / "pool", model, text, Cluster(pool, 3), method=method) == wanted
    assert not (tmp_path / ".pool.blocks").exists()


def test_blocks_that_are_finished_are_not_done_again(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even those behind a block that is not, be it the first."""
    wanted = quantize(tmp_path / "local", model, text, None)
    quantize_block = block_jobs.quantize_block
    worked: list[int] = []

    def stop_first_two(layer: int, *rest: Any) -> Any:
        worked.append(layer)
        if layer < 2 and len(worked) <= LAYERS:
            # until every block is begun, and one behind these is done
            while len(worked) < LAYERS or not any((tmp_path / ".out.blocks").glob("outcome-*.json")):
                time.sleep(0.01)
            raise KeyboardInterrupt
        return quantize_block(layer, *rest)

    monkeypatch.setattr(block_jobs, "quantize_block", stop_first_two)
    with ThreadPoolExecutor(3) as pool, pytest.raises(KeyboardInterrupt):
        quantize(tmp_path / "out", model, text, Cluster(pool, 3))
    assert sorted(worked) == list(range(LAYERS))
    left = [layer for layer in range(LAYERS) if not (tmp_path / ".out.blocks" / f"outcome-{layer:05d}.json").exists()]
    assert left[:2] == [0, 1]
    assert len(left) < LAYERS
    worked += range(LAYERS)  # from here on nothing is stopped
    before = len(worked)
    with ThreadPoolExecutor(3) as pool:
        assert quantize(tmp_path / "out", model, text, Cluster(pool, 3)) == wanted
    assert sorted(worked[before:]) == left


def test_a_failure_is_raised_and_nothing_is_left(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise QuantizationError("the disk is on fire", remedy="put it out")

    monkeypatch.setattr(block_jobs, "quantize_block", fail)
    before = set(tmp_path.iterdir())
    with ThreadPoolExecutor(2) as pool, pytest.raises(QuantizationError, match="on fire"):
        quantize(tmp_path / "out", model, text, Cluster(pool, 2))
    assert set(tmp_path.iterdir()) == before


def test_few_jobs_wait_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [0], [0]

    def work(number: Any) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(random.random() / 100)
        running[0] -= 1
        return int(number)

    monkeypatch.setattr(block_jobs, "run_job", work)
    with ThreadPoolExecutor(8) as pool:
        jobs: Any = iter(range(30))
        assert sorted(run_jobs(pool, jobs, 3)) == list(range(30))
    assert 1 < most[0] <= 3


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """(address, workers) of a scheduler and two workers, each a process of its own."""
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{find_port()}"
    paths = [str(Path(edgeawq.__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    environment = os.environ | {
        "PYTHONPATH": ":".join(paths),
        "OMP_NUM_THREADS": "1",
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--host", address]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    processes = [subprocess.Popen(scheduler, **quiet)]
    try:
        processes += [
            subprocess.Popen([*worker, "--no-dashboard", "--local-directory", str(tmp_path / f"w{number}")], **quiet)
            for number in range(2)
        ]
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.server
def test_a_dask_cluster_finishes_though_a_worker_is_killed(
    tmp_path: Path, model: Path, text: Path, dask: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    from edgeawq.quantize.cluster import connect_cluster

    address, workers = dask
    wanted = quantize(tmp_path / "local", model, text, None)
    wait_for_workers(address, 2)
    killed: list[int] = []
    with connect_cluster(address) as found:
        assert found.n_workers == 2

        def kill_one(progress: Any) -> None:
            if progress.stage == "quantize" and progress.done == 1 and not killed:
                workers[0].send_signal(signal.SIGKILL)
                killed.append(workers[0].wait())

        chosen = quick_settings(bits=3, rounding_steps=4)
        quantize_model(
            open_model(str(model)), tmp_path / "out", chosen, calibration=text, n_threads=1,
            cluster=found, reference=str(model), on_progress=kill_one,
        )  # fmt: skip
    assert killed == [-signal.SIGKILL]
    assert read_folder(tmp_path / "out") == wanted


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def test_no_scheduler_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.2)
    with (
        pytest.raises(UsageError, match="no Dask scheduler answers") as caught,
        cluster.connect_cluster(f"tcp://127.0.0.1:{find_port()}"),
    ):
        raise AssertionError("something answered")
    assert "dask scheduler" in caught.value.remedy


def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeawq.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError) as caught, cluster.connect_cluster("tcp://127.0.0.1:1"):
        raise AssertionError("something answered")
    assert "edgeawq[cluster]" in caught.value.remedy
