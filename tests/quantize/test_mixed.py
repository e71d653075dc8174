"""`--method mixed`: some channels stay in float16, for analysis; what is written is no float model and no bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeawq.checkpoints.analysis import Analysis, read_analysis
from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.errors import UnsupportedModelError
from edgeawq.quantize.mixed import CRITERIA
from edgeawq.quantize.pipeline import quantize_model
from edgeawq.quantize.report import QuantizationReport
from edgeawq.quantize.storage import measure_storage
from tests.quantize.runs import SHAPE, quick_settings, read_folder
from tests.tiny_models import TinyCheckpoint, make_tiny_model

PERCENT = 5.0
KEPT = {64: 3, 96: 5}  # channels that this is, by width


@pytest.fixture(scope="module")
def model() -> TinyCheckpoint:
    model = make_tiny_model(1, quantized=False, **SHAPE)
    # One input of q, k and v is far louder than the rest, and the columns of another layer far longer.
    model.tensors["model.layers.0.input_layernorm.weight"][7] = 60.0
    model.tensors["model.layers.1.mlp.up_proj.weight"][:, 11] *= 9.0
    return model


def quantize(
    model: TinyCheckpoint, folder: Path, text: Path, n_threads: int = 2, **settings: Any
) -> tuple[Checkpoint, QuantizationReport]:
    chosen = quick_settings(**{"method": "mixed", "bits": 3, "keep_percent": PERCENT, **settings})
    report = quantize_model(model, folder, chosen, calibration=text, n_threads=n_threads)
    return open_model(str(folder)), report


def find_kept(model: TinyCheckpoint, written: Checkpoint, module: str) -> set[int]:
    """The columns that are the source's in float16; all others must be those of rounding to nearest."""
    weight = model.tensor(f"{module}.weight")
    rounded = dequantize(quantize_rtn(weight, 3, 32)).astype(np.float16).astype(np.float32)
    found = written.tensor(f"{module}.weight")
    is_source = (found == weight.astype(np.float16).astype(np.float32)).all(0)
    assert np.array_equal(found[:, ~is_source], rounded[:, ~is_source])
    return set(np.flatnonzero(is_source).tolist())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_chosen_channels_stay_and_the_rest_is_rounded(
    tmp_path: Path, text: Path, model: TinyCheckpoint, criterion: str
) -> None:
    written, report = quantize(model, tmp_path / "out", text, keep_by=criterion)
    kept = {module: find_kept(model, written, module) for module in list_linear_shapes(model.config)}
    for module, (_, width) in list_linear_shapes(model.config).items():
        assert len(kept[module]) == KEPT[width], module
    loud, long = kept["model.layers.0.self_attn.q_proj"], kept["model.layers.1.mlp.up_proj"]
    if criterion == "activation":
        assert 7 in loud
        assert loud == kept["model.layers.0.self_attn.v_proj"]
    elif criterion == "weight-norm":
        assert 11 in long
    else:
        assert len({tuple(sorted(channels)) for channels in kept.values()}) > 10
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert np.array_equal(written.tensor(name), model.tensor(name).astype(np.float16).astype(np.float32))
    assert report.reverted_blocks == ()
    if criterion == "activation":
        assert report.blocks[0].loss < report.blocks[0].rtn_loss


def test_what_is_written_says_what_it_is(tmp_path: Path, text: Path, model: TinyCheckpoint) -> None:
    written, report = quantize(model, tmp_path / "out", text)
    assert written.quantization is None
    widths = [(rows, width) for rows, width in list_linear_shapes(model.config).values()]
    weights = sum(rows * width for rows, width in widths)
    # 3 bits with a 16-bit scale and a 3-bit zero for every 32, and 13 bits more in kept columns.
    wanted = 3 + 19 / 32 + sum(13 * rows * KEPT[width] for rows, width in widths) / weights
    assert report.bits_per_weight == pytest.approx(wanted)
    kept = "5 % of the input channels, chosen by their activations, are not rounded"
    assert read_analysis(written.config) == Analysis("mixed", 3, pytest.approx(wanted), kept)  # type: ignore[arg-type]
    storage = measure_storage(written)
    assert (storage.bits, storage.bits_per_weight) == (3, pytest.approx(wanted))
    assert read_analysis(model.config) is None


def test_keeping_everything_is_the_float_model_and_nothing_is_rtn(
    tmp_path: Path, text: Path, model: TinyCheckpoint
) -> None:
    for percent, n_kept in ((100, 64), (0, 0)):
        written, _ = quantize(model, tmp_path / str(percent), text, keep_percent=percent, keep_by="random")
        assert len(find_kept(model, written, "model.layers.0.self_attn.k_proj")) == n_kept


def test_random_channels_are_the_seeds_and_not_the_threads(tmp_path: Path, text: Path, model: TinyCheckpoint) -> None:
    folders = []
    for name, seed, n_threads in (("a", 3, 1), ("b", 3, 3), ("c", 4, 2)):
        quantize(model, tmp_path / name / "out", text, n_threads, keep_by="random", seed=seed)
        folders.append(read_folder(tmp_path / name / "out"))
    assert folders[0] == folders[1]
    assert folders[0]["model.safetensors"] != folders[2]["model.safetensors"]


def test_it_is_neither_packed_nor_quantized_again(tmp_path: Path, text: Path, model: TinyCheckpoint) -> None:
    from device_profiles.profile import load_profile
    from packager.pack import pack_checkpoint

    written, _ = quantize(model, tmp_path / "out", text)
    with pytest.raises(UnsupportedModelError, match="made with --method mixed, for analysis only") as caught:
        pack_checkpoint(written, load_profile("pi4"), tmp_path / "bundle")
    assert "edgeawq eval" in str(caught.value.remedy)
    with pytest.raises(UnsupportedModelError, match="for analysis only"):
        quantize_model(written, tmp_path / "again", quick_settings(method="rtn"))
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "again").exists()


def test_its_symmetric_grid_and_its_rows(tmp_path: Path, text: Path, model: TinyCheckpoint) -> None:
    module = "model.layers.1.mlp.gate_proj"
    written, _ = quantize(model, tmp_path / "out", text, is_symmetric=True, group_size=-1, keep_percent=0)
    wanted = dequantize(quantize_rtn(model.tensor(f"{module}.weight"), 3, 64, is_symmetric=True))
    assert np.array_equal(written.tensor(f"{module}.weight"), wanted.astype(np.float16).astype(np.float32))
