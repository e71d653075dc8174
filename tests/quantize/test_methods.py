"""Every method, from a float model to a checkpoint that is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.quantize.block import QuantizedBlock
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.pipeline import quantize_model
from edgeawq.quantize.report import REPORT_FILE, QuantizationReport
from tests.quantize.runs import (
    CALIBRATED,
    GRID_METHODS,
    LINEARS,
    SHAPE,
    is_same_grid,
    quick_settings,
    read_folder,
    write_text,
)
from tests.tiny_models import make_tiny_model


def quantize(folder: Path, seed: int, n_threads: int = 2, **settings: Any) -> tuple[Checkpoint, QuantizationReport]:
    """A tiny model through the quantizer; the checkpoint as it is read back."""
    model = make_tiny_model(seed, quantized=False, **SHAPE)
    folder.parent.mkdir(exist_ok=True)
    text = write_text(folder.parent / f"{folder.name}.txt", seed)
    chosen = quick_settings(rounding_steps=15, seed=seed, **settings)
    needs_text = METHODS[chosen.method].needs_text
    report = quantize_model(model, folder, chosen, calibration=text if needs_text else None, n_threads=n_threads)
    return open_model(str(folder)), report


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("method", CALIBRATED)
def test_blocks_come_closer_than_rounded_to_nearest_and_are_stored_as_they_are(
    tmp_path: Path, saved: dict[int, QuantizedBlock], method: str, bits: int
) -> None:
    written, report = quantize(tmp_path / "out", bits, method=method, bits=bits)
    assert written.quantization is not None
    assert written.quantization.bits == bits
    assert written.quantization.version == ("gemm" if bits == 4 else "gptq_v2")
    assert len(report.blocks) == 2
    assert sum(block.loss for block in report.blocks) < sum(block.rtn_loss for block in report.blocks)
    for layer, block in saved.items():
        for module, linear in block.linears.items():
            found = written.quantized_linear(f"model.layers.{layer}.{module}")
            assert found is not None
            assert is_same_grid(found, linear)
    described = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert described["settings"]["method"] == method
    assert described["blocks"][0]["layers"]["mlp.up_proj"]["bits"] == bits


@pytest.mark.parametrize("method", [name for name in CALIBRATED if name != "awq"])
def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path, method: str) -> None:
    for name, n_threads in (("a", 1), ("b", 3)):
        quantize(tmp_path / name / "out", 3, n_threads, method=method, bits=3)
    assert read_folder(tmp_path / "a" / "out") == read_folder(tmp_path / "b" / "out")


@pytest.mark.parametrize("method", GRID_METHODS)
def test_symmetric_grids_have_their_zero_in_the_middle(tmp_path: Path, method: str) -> None:
    written, _ = quantize(tmp_path / "out", 5, method=method, bits=3, is_symmetric=True)
    assert written.quantization is not None
    assert not written.quantization.zero_point
    for module in LINEARS:
        found = written.quantized_linear(f"model.layers.1.{module}")
        assert found is not None
        assert (found.zeros == 4).all()


@pytest.mark.parametrize("method", GRID_METHODS)
def test_whole_rows_and_layers_that_differ(tmp_path: Path, method: str) -> None:
    overrides = (("down_proj", 8), (r"layers\.1\.self_attn", 2))
    written, report = quantize(tmp_path / "out", 6, method=method, bits=4, group_size=-1, bits_for=overrides)
    assert written.quantization is not None
    assert (written.quantization.bits, written.quantization.group_size) == (4, -1)
    for layer in range(2):
        for module in LINEARS:
            found = written.quantized_linear(f"model.layers.{layer}.{module}")
            assert found is not None
            wanted = 8 if "down" in module else 2 if layer == 1 and "attn" in module else 4
            assert (found.bits, found.group_size) == (wanted, found.shape[1])
    assert 4 < report.bits_per_weight < 6
    assert report.head_group_size == 64


def test_learned_rounding_looks_at_what_the_blocks_before_made_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeawq.quantize import block_task

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    learn = block_task.learn_rounding

    def record(weights: Any, start: Any, hidden: torch.Tensor, expected: torch.Tensor, *rest: Any) -> Any:
        seen.append((hidden.clone(), expected.clone()))
        return learn(weights, start, hidden, expected, *rest)

    monkeypatch.setattr(block_task, "learn_rounding", record)
    quantize(tmp_path / "out", 7, method="awq+round", bits=2)
    (_, first_output), (second_input, _) = seen
    assert second_input.shape == first_output.shape
    difference = float((second_input - first_output).square().sum() / first_output.square().sum())
    assert 1e-6 < difference < 0.5


def test_gptq_keeps_the_norms_and_awq_does_not(tmp_path: Path) -> None:
    norm = "model.layers.0.input_layernorm.weight"
    source = make_tiny_model(8, quantized=False, **SHAPE).tensor(norm).astype(np.float16).astype(np.float32)
    for method, is_kept in (("gptq", True), ("awq+gptq", False)):
        written, report = quantize(tmp_path / method, 8, method=method, bits=3)
        assert not report.reverted_blocks
        assert np.array_equal(written.tensor(norm), source) == is_kept
