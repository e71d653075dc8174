"""A killed run goes on from its last finished block, to the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeawq.errors import QuantizationError
from edgeawq.quantize import block_store, block_task, run_blocks, self_text
from edgeawq.quantize.activations import StoredActivations
from edgeawq.quantize.block_store import open_store
from edgeawq.quantize.pipeline import quantize_model
from tests.quantize.runs import SHAPE, quick_settings, read_folder, write_text
from tests.tiny_models import TinyCheckpoint, make_tiny_hf_checkpoint, make_tiny_model


class KilledError(BaseException):
    """Stands for SIGKILL: nothing may be tidied up after it."""


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that were quantized, in order."""
    layers: list[int] = []
    quantize_block = run_blocks.quantize_block

    def record(layer: int, *rest: Any) -> Any:
        layers.append(layer)
        return quantize_block(layer, *rest)

    monkeypatch.setattr(run_blocks, "quantize_block", record)
    return layers


def run(
    folder: Path, model: TinyCheckpoint, text: Path | None, activation_bytes: int = 1 << 30, **settings: Any
) -> None:
    chosen = quick_settings(rounding_steps=4, **settings)
    quantize_model(model, folder, chosen, calibration=text, n_threads=2, activation_bytes=activation_bytes)


def run_killed(monkeypatch: pytest.MonkeyPatch, start: Callable[[], None], at: int) -> bool:
    """Start a run that is killed before its `at`-th file gets its name; False where it has fewer."""
    count = 0
    replace = Path.replace

    def count_files(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == at:
            raise KilledError
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", count_files)
        patch.setattr(block_store.shutil, "rmtree", lambda *_, **__: None)
        try:
            start()
        except KilledError:
            return True
    return False


@pytest.mark.parametrize(("method", "activation_bytes"), [("awq", 1 << 30), ("awq+round", 0), ("rtn", 0)])
def test_whenever_it_is_killed_the_bytes_are_the_same(
    tmp_path: Path, text: Path, worked: list[int], method: str, activation_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model(2, quantized=False, **SHAPE)
    calibration = None if method == "rtn" else text
    settings = {"method": method, "bits": 3, "activation_bytes": activation_bytes}
    run(tmp_path / "whole", model, calibration, **settings)
    wanted = read_folder(tmp_path / "whole")
    for at in range(1, 100):
        folder = tmp_path / f"{at}" / "out"
        worked.clear()
        if not run_killed(monkeypatch, lambda folder=folder: run(folder, model, calibration, **settings), at):  # type: ignore[misc]
            break
        assert not folder.exists()
        begun = list(worked)
        run(folder, model, calibration, **settings)
        assert read_folder(folder) == wanted, at
        assert [path.name for path in folder.parent.iterdir()] == ["out"]
        # Only the block that was at work is done again.
        assert worked == ([*begun, *range(begun[-1], 2)] if begun else [0, 1] if calibration else [])
        shutil.rmtree(folder.parent)
    assert at > (4 if method == "rtn" else 7)


def test_a_run_killed_again_and_again_comes_to_its_end(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model(3, quantized=False, **{**SHAPE, "n_layers": 4})
    run(tmp_path / "whole", model, text)
    source = random.Random()
    folder = tmp_path / "out"
    for _ in range(200):
        if not run_killed(monkeypatch, lambda: run(folder, model, text), source.randint(3, 6)):
            break
    assert read_folder(folder) == read_folder(tmp_path / "whole")


def test_another_run_does_not_take_the_blocks(
    tmp_path: Path, text: Path, worked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings, another model, other text: everything is done anew."""
    model = make_tiny_model(4, quantized=False, **SHAPE)
    other = make_tiny_model(5, quantized=False, **SHAPE)
    folder = tmp_path / "out"
    cases: list[tuple[TinyCheckpoint, dict[str, Any], int]] = [(model, {"bits": 3}, 1), (other, {}, 1), (model, {}, 7)]
    for changed, settings, seed in cases:
        write_text(text, 1)
        assert run_killed(monkeypatch, lambda: run(folder, model, text), 6)
        write_text(text, seed)
        worked.clear()
        run(folder, changed, text, **settings)
        assert worked == [0, 1]
        run(tmp_path / "wanted", changed, text, **settings)
        assert read_folder(folder) == read_folder(tmp_path / "wanted")
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "wanted")


def test_text_that_the_model_wrote_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_text, "TEXT_LENGTH", 64)
    model = make_tiny_model(6, quantized=False, **SHAPE)
    run(tmp_path / "whole", model, None)
    folder = tmp_path / "out"
    assert run_killed(monkeypatch, lambda: run(folder, model, None), 4)

    def refuse(*_: object) -> None:
        raise AssertionError("the text was there")

    monkeypatch.setattr(run_blocks, "write_calibration", refuse)
    run(folder, model, None)
    assert read_folder(folder) == read_folder(tmp_path / "whole")


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(7, quantized=False, **SHAPE)
    measure = block_task.measure_block_loss
    calls = [0]

    def stop(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(block_task, "measure_block_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", model, text)
    assert (tmp_path / ".out.blocks" / "outcome-00000.json").is_file()
    run(tmp_path / "out", model, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts"]


def test_two_runs_to_the_same_output_do_not_mix(tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "out", {"a": 1}) as store,
        pytest.raises(QuantizationError, match="another process") as caught,
        open_store(tmp_path / "out", {"a": 1}),
    ):
        raise AssertionError("the folder was given twice")
    assert caught.value.remedy
    assert not store.folder.exists()


def test_a_killed_process_goes_on(tmp_path: Path, text: Path) -> None:
    """With real kills, at moments that no one chose, through the command line."""
    model = make_tiny_hf_checkpoint(tmp_path / "model", 8, **{**SHAPE, "n_layers": 4})
    arguments = [
        "--calib",
        str(text),
        "--calib-tokens",
        "256",
        "--seqlen",
        "64",
        "--group-size",
        "32",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "edgeawq", "quantize", str(model), *arguments, "--method", "awq+round"]
    command += ["--rounding-steps", "30", "--bits", "3", "-o"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, **quiet)  # type: ignore[call-overload]
    whole_s = time.monotonic() - started
    folder, work = tmp_path / "out", tmp_path / ".out.blocks"
    source = random.Random()
    while not folder.exists() and source.random() < 0.8:
        process = subprocess.Popen([*command, str(folder)], **quiet)  # type: ignore[call-overload]
        # Wait for a sign of work, then some random part of what is left.
        while process.poll() is None and not (work / "run.json").exists():
            time.sleep(0.01)
        time.sleep(source.random() * whole_s / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not folder.exists():  # the last kill may have come too late
        subprocess.run([*command, str(folder)], check=True, **quiet)  # type: ignore[call-overload]
    assert read_folder(folder) == read_folder(tmp_path / "whole")
    assert not work.exists()


def test_activations_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    states = torch.randn(5, 7, 3)
    stored = StoredActivations(tmp_path / "states.f32", (5, 7, 3))
    for sequence in (3, 0, 4, 1, 2):
        stored[sequence : sequence + 1] = states[sequence : sequence + 1]
    assert len(stored) == 5
    assert torch.equal(stored[1:4], states[1:4])
    assert torch.equal(stored[:], states)
    stored.sync()
    assert np.array_equal(np.fromfile(tmp_path / "states.f32", np.float32), states.numpy().ravel())
    with pytest.raises(ValueError, match="does not fit"):
        stored[0:2] = states[0:1]
    with pytest.raises(ValueError, match="neighbouring"):
        stored[::2]
    with pytest.raises(QuantizationError, match="cannot be stored"):
        StoredActivations(tmp_path / "absent" / "states.f32", (1, 1, 1))
