"""Devices: which are chosen, blocks side by side on several, and that no step computes in main memory by mistake."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import UsageError
from edgeawq.quantize import block_jobs, devices, pipeline, scale_search, self_text
from edgeawq.quantize.devices import ACCELERATOR_THREADS, CPU, choose_devices, count_threads, start_devices
from edgeawq.quantize.pipeline import Evaluation, quantize_model
from edgeawq.quantize.report import REPORT_FILE
from edgeawq.quantize.settings import QuantizeSettings
from tests.quantize.pretend_device import ELSEWHERE, PretendDevice, start_inline_workers
from tests.quantize.runs import SHAPE, quick_settings, read_folder, write_text
from tests.quantize.tiny_experts import make_expert_model, starve
from tests.tiny_models import TinyCheckpoint, make_tiny_model

ONE_GROUP: dict[str, Any] = {
    "hidden": 32, "intermediate": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32, "n_layers": 1,
}  # fmt: skip
TWO = (torch.device("cuda", 0), torch.device("cuda", 1))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("auto", TWO), ("cuda", TWO), ("cpu", (CPU,)), ("cuda:1", TWO[1:]), ("cuda:1, cuda:0,cuda:1", TWO[::-1]),
    ],
)  # fmt: skip
def test_names_choose_devices(two_gpus: None, wanted: str, chosen: tuple[torch.device, ...]) -> None:
    assert choose_devices(wanted) == chosen


def test_without_a_gpu_the_processor_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices("auto") == (CPU,)
    for wanted in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match="the CUDA devices that torch sees are none") as caught:
            choose_devices(wanted)
        assert caught.value.remedy


@pytest.mark.parametrize("wanted", ["cuda:2", "gpu", "mps", "", "cuda:0,,cuda:1"])
def test_devices_that_are_not_there_are_named(two_gpus: None, wanted: str) -> None:
    with pytest.raises(UsageError):
        choose_devices(wanted)


def test_an_accelerator_gets_few_threads() -> None:
    assert count_threads(0, CPU) == 0
    assert count_threads(0, TWO[0]) == ACCELERATOR_THREADS
    assert count_threads(5, TWO[0]) == 5


def test_every_device_has_one_call_at_a_time() -> None:
    busy: set[torch.device] = set()
    seen: list[torch.device] = []
    both = threading.Barrier(2, timeout=30)
    lock = threading.Lock()

    def work(number: int, *, device: torch.device) -> int:
        with lock:
            assert device not in busy
            busy.add(device)
            seen.append(device)
        if number < 2:
            both.wait()  # two run at once
        with lock:
            busy.remove(device)
        return number

    with start_devices(TWO) as cluster:
        assert cluster is not None
        assert cluster.n_workers == 2
        futures = [cluster.executor.submit(work, number) for number in range(6)]
        assert [future.result() for future in futures] == list(range(6))
        failing = cluster.executor.submit(lambda *, device: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failing.result()
        assert cluster.executor.submit(work, 7).result() == 7
    assert set(seen) == set(TWO)
    with start_devices(TWO[:1]) as cluster:
        assert cluster is None


@pytest.mark.parametrize("method", ["awq", "awq+round"])
def test_blocks_on_several_devices_have_the_bytes_of_one(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model = make_tiny_model(1, quantized=False, **{**SHAPE, "n_layers": 3})
    settings = quick_settings(method=method, rounding_steps=4)
    quantize_model(model, tmp_path / "one" / "out", settings, calibration=text)
    monkeypatch.setattr(pipeline, "choose_devices", lambda wanted: (CPU, torch.device("cpu", 0)))
    used: list[torch.device | None] = []
    run_job = block_jobs.run_job

    def record(job: Any, device: torch.device | None = None) -> int:
        used.append(device)
        return run_job(job, device)

    monkeypatch.setattr(block_jobs, "run_job", record)
    quantize_model(model, tmp_path / "two" / "out", settings, calibration=text, device="cpu,cpu:0")
    assert read_folder(tmp_path / "two" / "out") == read_folder(tmp_path / "one" / "out")
    assert len(used) == 3
    assert None not in used


def quantize_there(
    model: TinyCheckpoint, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: QuantizeSettings, **options: Any
) -> None:
    """Quantize on a pretended device, which refuses to mix tensors with main memory's; the weights are the same."""
    for name in ("PLAIN", "DUO", "REFINEMENT_STEPS"):  # a short search; operations there cost ten times as much
        monkeypatch.setattr(scale_search, name, getattr(scale_search, name)[1:2])
    for place in ("here", "there"):
        with ExitStack() as stack:
            if place == "there":
                monkeypatch.setattr(pipeline, "choose_devices", lambda wanted: (ELSEWHERE,))
                monkeypatch.setattr(pipeline, "start_workers", start_inline_workers)
                stack.enter_context(PretendDevice())
            quantize_model(model, folder / place / "out", settings, n_threads=1, **options)
    found, wanted = (read_folder(folder / place / "out") for place in ("there", "here"))
    # Attention is computed in single steps there, whose sums differ in the last digits of the report's errors.
    assert [name for name in wanted if found[name] != wanted[name]] in ([], [REPORT_FILE])


def test_learned_rounding_after_gptq_and_awq_stays_on_its_device(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model(2, quantized=False, tie=False, **ONE_GROUP)
    evaluation = Evaluation(write_text(tmp_path / "texts" / "test.txt", 12, 1500), 100)
    settings = quick_settings(method="awq+gptq+round", bits=2, rounding_steps=1)
    quantize_there(model, tmp_path, monkeypatch, settings, calibration=text, evaluation=evaluation)


def test_bits_by_layer_and_gptq_on_text_of_the_model_stay_on_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "TEXT_LENGTH", 16)
    model = make_tiny_model(3, quantized=False, **ONE_GROUP)
    quantize_there(model, tmp_path, monkeypatch, quick_settings(method="gptq", target_bpw=4.5))


def test_experts_and_kept_channels_stay_on_their_device(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_expert_model(2, "qwen2_moe", n_layers=1)
    starve(model, 1)
    quantize_there(model, tmp_path, monkeypatch, quick_settings(method="mixed", keep_percent=5.0), calibration=text)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_comes_to_the_same_block(tmp_path: Path, text: Path) -> None:
    model = make_tiny_model(4, quantized=False, **SHAPE)
    reports = [
        quantize_model(model, tmp_path / device.replace(":", "-"), quick_settings(), calibration=text, device=device)
        for device in ("cpu", "cuda:0")
    ]
    for one, other in zip(*(report.blocks for report in reports), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.05)
    assert open_model(str(tmp_path / "cuda-0")).quantization is not None
    assert devices.choose_devices("auto")[0].type == "cuda"
