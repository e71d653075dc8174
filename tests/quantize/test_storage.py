from __future__ import annotations

from pathlib import Path

import pytest

from edgeawq.checkpoints.open_model import open_model
from edgeawq.quantize.storage import measure_storage
from tests.quantize.runs import SHAPE
from tests.tiny_models import make_tiny_awq_checkpoint, make_tiny_hf_checkpoint, make_tiny_model


def test_a_float_folder_counts_its_file(tmp_path: Path) -> None:
    folder = make_tiny_hf_checkpoint(tmp_path / "float", 1, **SHAPE)
    size = (folder / "model.safetensors").stat().st_size
    found = measure_storage(open_model(str(folder)))
    assert found.file_bytes == size
    assert found.bits is None
    assert found.bits_per_weight == pytest.approx(8 * size / found.n_weights)


def test_a_quantized_folder_counts_its_grid(tmp_path: Path) -> None:
    found = measure_storage(open_model(str(make_tiny_awq_checkpoint(tmp_path / "awq", 1, group_size=32, **SHAPE))))
    assert found.bits == 4.0
    assert found.bits_per_weight == 4 + 20 / 32
    assert found.file_bytes is not None and found.file_bytes > 0


def test_a_model_in_memory_has_no_size() -> None:
    found = measure_storage(make_tiny_model(1, quantized=False, **SHAPE))
    assert found.file_bytes is None and found.bits_per_weight is None and found.n_weights > 0
