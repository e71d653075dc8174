from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import EdgeawqError, QuantizationError, UsageError
from edgeawq.quantize import block, block_task, run_blocks, run_output, self_text
from edgeawq.quantize.block import QuantizedBlock
from edgeawq.quantize.block_store import BlockStore
from edgeawq.quantize.clip_search import ClippedGrid, search_clip
from edgeawq.quantize.llama import load_decoder
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.pipeline import Evaluation, Progress, quantize_model
from edgeawq.quantize.report import REPORT_FILE
from tests.quantize.runs import (
    GRID_METHODS,
    LINEARS,
    SHAPE,
    is_same_grid,
    measure_nmse,
    quick_settings,
    read_folder,
    write_text,
)
from tests.tiny_models import make_tiny_model

EMBEDDING = "model.embed_tokens"


@pytest.mark.parametrize("from_file", [True, False])
def test_same_seed_same_bytes_whatever_the_threads(
    tmp_path: Path, text: Path, from_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "TEXT_LENGTH", 64)
    model = make_tiny_model(1, quantized=False, **{**SHAPE, "n_layers": 1})
    calibration = text if from_file else None
    folders = []
    for name, seed, n_threads in (("a", 3, 1), ("b", 3, 2), ("c", 4, 2)):
        report = quantize_model(
            model, tmp_path / name, quick_settings(seed=seed), calibration=calibration, n_threads=n_threads
        )
        assert report.calibration is not None
        assert report.calibration.source == ("calibration.txt" if from_file else "self-generated")
        folders.append(read_folder(tmp_path / name))
    assert folders[0] == folders[1]
    assert {"config.json", "tokenizer.json", "edgeawq_grids.safetensors", REPORT_FILE} < set(folders[0])
    assert folders[0]["model.safetensors"] != folders[2]["model.safetensors"]


@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_awq_is_not_worse_than_rtn_where_it_is_kept(
    tmp_path: Path, text: Path, saved: dict[int, QuantizedBlock], n_kv_heads: int
) -> None:
    model = make_tiny_model(2, quantized=False, attention_bias=True, **{**SHAPE, "n_kv_heads": n_kv_heads})
    steps: list[Progress] = []
    report = quantize_model(
        model, tmp_path / "out", quick_settings(), calibration=text, on_progress=steps.append, n_threads=2
    )
    assert len(report.blocks) == model.config.n_layers
    assert report.reverted_blocks != tuple(range(model.config.n_layers))
    for number, outcome in enumerate(report.blocks):
        assert outcome.is_reverted == (not outcome.loss < outcome.rtn_loss)
        assert set(outcome.layers) == set(LINEARS)
        for layer in outcome.layers.values():
            assert 0 < layer.error < 1
            assert 0 < layer.mean_clip <= 1.5
        rtn = quantize_rtn(model.tensor(f"model.layers.{number}.mlp.up_proj.weight"), 4, 32)
        assert is_same_grid(saved[number].linears["mlp.up_proj"], rtn) == outcome.is_reverted
    stages = [step.stage for step in steps]
    assert list(dict.fromkeys(stages)) == ["quantize", "write"]
    assert all(step.done <= step.total for step in steps)


@pytest.mark.parametrize("spoiled", [{1}, {0, 1}])
def test_a_block_that_did_not_improve_is_left_at_rtn(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, spoiled: set[int]
) -> None:
    calls = [0]

    def search_badly(weight: torch.Tensor, *rest: Any) -> ClippedGrid:
        grid = search_clip(weight, *rest)
        layer = calls[0] // len(LINEARS)
        calls[0] += 1
        if layer not in spoiled:
            return grid
        return ClippedGrid(grid.scales * 4, grid.zeros, grid.high_ratio, grid.low_ratio)

    monkeypatch.setattr(block, "search_clip", search_badly)
    model = make_tiny_model(3, quantized=False, **SHAPE)
    report = quantize_model(model, tmp_path / "out", quick_settings(), calibration=text, n_threads=2)
    assert calls[0] == 2 * len(LINEARS)
    assert set(report.reverted_blocks) == spoiled
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text())["reverted_blocks"] == sorted(spoiled)
    written = open_model(str(tmp_path / "out"))
    for layer in range(2):
        for module in LINEARS:
            name = f"model.layers.{layer}.{module}"
            found = written.quantized_linear(name)
            assert found is not None
            rtn = quantize_rtn(model.tensor(f"{name}.weight"), 4, 32)
            assert is_same_grid(found, rtn) == (layer in spoiled), name
        norm = f"model.layers.{layer}.input_layernorm.weight"
        is_kept = np.array_equal(written.tensor(norm), model.tensor(norm).astype(np.float16).astype(np.float32))
        assert is_kept or layer not in spoiled


@pytest.mark.parametrize("method", ["awq", "rtn"])
@pytest.mark.parametrize("tie", [True, False])
def test_the_checkpoint_holds_what_was_quantized(
    tmp_path: Path, text: Path, saved: dict[int, QuantizedBlock], method: str, tie: bool
) -> None:
    model = make_tiny_model(4, quantized=False, tie=tie, attention_bias=True, **SHAPE)
    report = quantize_model(
        model,
        tmp_path / "out",
        quick_settings(method=method),
        calibration=text if method == "awq" else None,
        n_threads=2,
    )
    written = open_model(str(tmp_path / "out"))
    assert written.quantization is not None
    assert (written.quantization.bits, written.quantization.group_size) == (4, 32)
    assert written.config == model.config
    assert written.config.tie_word_embeddings == tie
    assert written.generation_defaults == model.generation_defaults
    assert written.tokenizer == model.tokenizer
    for layer, quantized in saved.items():
        for module, linear in quantized.linears.items():
            found = written.quantized_linear(f"model.layers.{layer}.{module}")
            assert found is not None
            assert is_same_grid(found, linear)
        for name, tensor in quantized.floats.items():
            assert np.array_equal(written.tensor(f"model.layers.{layer}.{name}"), tensor.float().numpy())
        if method == "rtn":
            source = model.tensor(f"model.layers.{layer}.mlp.down_proj.weight")
            assert is_same_grid(quantized.linears["mlp.down_proj"], quantize_rtn(source, 4, 32))
    for module in (EMBEDDING,) if tie else (EMBEDDING, "lm_head"):
        head = written.quantized_linear(module)
        assert head is not None
        assert head.bits == 8
        assert is_same_grid(head, quantize_rtn(model.tensor(f"{module}.weight"), 8, 32))
    assert ("lm_head.weight" in written.tensor_names()) != tie
    with safe_open(tmp_path / "out" / "edgeawq_grids.safetensors", "np") as grids:
        assert {name.rpartition(".")[0] for name in grids.keys()} == {EMBEDDING, *([] if tie else ["lm_head"])}  # noqa: SIM118
    assert (report.calibration is None) == (method == "rtn")
    assert len(report.blocks) == (2 if method == "awq" else 0)
    tokens = torch.randint(0, 320, (1, 30), generator=torch.Generator().manual_seed(4))
    assert measure_nmse(load_decoder(written)(tokens), load_decoder(model)(tokens)) < 0.15


@pytest.mark.parametrize("tie", [True, False])
def test_head_bits_16_leaves_float(tmp_path: Path, tie: bool) -> None:
    model = make_tiny_model(5, quantized=False, tie=tie, **SHAPE)
    report = quantize_model(model, tmp_path / "out", quick_settings(method="rtn", head_bits=16))
    written = open_model(str(tmp_path / "out"))
    assert report.head_group_size is None
    assert written.quantized_linear(EMBEDDING) is None
    wanted = model.tensor(f"{EMBEDDING}.weight").astype(np.float16).astype(np.float32)
    assert np.array_equal(written.tensor(f"{EMBEDDING}.weight"), wanted)
    if not tie:
        assert written.quantized_linear("lm_head") is None
        assert "lm_head.weight" in written.tensor_names()


def test_head_bits_4(tmp_path: Path) -> None:
    model = make_tiny_model(6, quantized=False, **SHAPE)
    quantize_model(model, tmp_path / "out", quick_settings(method="rtn", head_bits=4))
    head = open_model(str(tmp_path / "out")).quantized_linear(EMBEDDING)
    assert head is not None
    assert is_same_grid(head, quantize_rtn(model.tensor(f"{EMBEDDING}.weight"), 4, 32))


@pytest.mark.parametrize(("hidden", "heads", "size"), [(96, 3, 32), (192, 6, 64)])
def test_the_report_says_which_group_size_was_taken(tmp_path: Path, hidden: int, heads: int, size: int) -> None:
    model = make_tiny_model(
        7, quantized=False, hidden=hidden, intermediate=2 * hidden, n_heads=heads, n_kv_heads=heads, n_layers=1
    )
    report = quantize_model(model, tmp_path / "out", quick_settings(method="rtn", group_size=128))
    assert report.group_size == size
    assert f"group size {size} instead of 128: 128 does not divide {hidden}" in report.notes
    written = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert (written["group_size"], written["settings"]["group_size"]) == (size, 128)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["group_size"] == size


def test_widths_without_a_group_leave_nothing(tmp_path: Path) -> None:
    model = make_tiny_model(8, quantized=False, hidden=48, intermediate=96, n_heads=3, n_kv_heads=3, head_dim=16)
    with pytest.raises(QuantizationError, match="width 48"):
        quantize_model(model, tmp_path / "out", quick_settings(method="rtn"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", GRID_METHODS)
@pytest.mark.parametrize("bits", [4, 2])
def test_zero_groups_and_zero_layers(tmp_path: Path, text: Path, method: str, bits: int) -> None:
    model = make_tiny_model(9, quantized=False, **SHAPE)
    model.tensors["model.layers.0.mlp.up_proj.weight"][:, :32] = 0.0
    model.tensors["model.layers.0.self_attn.q_proj.weight"][5] = 0.0
    model.tensors["model.layers.1.self_attn.v_proj.weight"][:] = 0.0
    model.tensors["model.layers.1.input_layernorm.weight"][::7] = 0.0
    model.tensors[f"{EMBEDDING}.weight"][11, 32:] = 0.0
    settings = quick_settings(method=method, bits=bits, rounding_steps=5)
    quantize_model(model, tmp_path / "out", settings, calibration=text if METHODS[method].needs_text else None)
    written = open_model(str(tmp_path / "out"))
    for name in written.tensor_names():
        assert np.isfinite(written.tensor(name)).all(), name
    assert not written.tensor("model.layers.0.mlp.up_proj.weight")[:, :32].any()
    assert not written.tensor("model.layers.0.self_attn.q_proj.weight")[5].any()
    assert not written.tensor("model.layers.1.self_attn.v_proj.weight").any()
    assert not written.tensor(f"{EMBEDDING}.weight")[11, 32:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight", f"{EMBEDDING}.weight"]
)
@pytest.mark.parametrize("method", ["awq", "rtn", "gptq", "awq+round"])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, text: Path, name: str, bad: float, method: str
) -> None:
    model = make_tiny_model(10, quantized=False, **SHAPE)
    model.tensors[name].flat[97 if "norm" not in name else 9] = bad
    model.tensors[name][..., :8] = bad
    calibration = text if METHODS[method].needs_text else None
    with pytest.raises(EdgeawqError, match="NaN or infinity|layernorm.weight reaches"):
        quantize_model(model, tmp_path / "out", quick_settings(method=method), calibration=calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


OVERFLOWS = {
    # bfloat16 reaches 3e38, float16 65504.
    "norm": ("model.layers.1.post_attention_layernorm.weight", 7e4, "post_attention_layernorm.weight reaches 7e"),
    "bias": ("model.layers.1.self_attn.k_proj.bias", -1e9, "k_proj.bias reaches 1e"),
    "weight": ("model.layers.0.mlp.up_proj.weight", 3e6, "a group spans"),
}


@pytest.mark.parametrize("method", ["awq", "awq+gptq", "rtn"])
@pytest.mark.parametrize("case", OVERFLOWS)
def test_what_float16_cannot_hold_is_refused(tmp_path: Path, text: Path, case: str, method: str) -> None:
    name, value, words = OVERFLOWS[case]
    model = make_tiny_model(11, quantized=False, attention_bias=True, **SHAPE)
    model.tensors[name].flat[5] = value
    calibration = text if METHODS[method].needs_text else None
    with pytest.raises(EdgeawqError, match=re.escape(words)) as caught:
        quantize_model(model, tmp_path / "out", quick_settings(method=method), calibration=calibration)
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_text])
def test_activations_that_overflow_are_named(tmp_path: Path, text: Path, method: str) -> None:
    model = make_tiny_model(12, quantized=False, **SHAPE)
    for name in ("gate", "up", "down"):
        model.tensors[f"model.layers.1.mlp.{name}_proj.weight"] *= 1e13
    with pytest.raises(QuantizationError, match="NaN or infinity on the calibration text|a group spans"):
        quantize_model(model, tmp_path / "out", quick_settings(method=method), calibration=text)


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq+round"])
def test_dead_and_loud_channels(tmp_path: Path, text: Path, method: str) -> None:
    """Inputs that are always zero, weights that nobody reads, and one channel a thousand times the others."""
    model = make_tiny_model(13, quantized=False, **SHAPE)
    model.tensors["model.layers.0.mlp.up_proj.weight"][::5] = 0.0  # dead inputs of down
    model.tensors["model.layers.1.self_attn.q_proj.weight"][:, ::3] = 0.0
    model.tensors["model.layers.1.post_attention_layernorm.weight"][7] = 1000.0
    settings = quick_settings(method=method, bits=3, rounding_steps=10)
    report = quantize_model(model, tmp_path / "out", settings, calibration=text, n_threads=2)
    written = open_model(str(tmp_path / "out"))
    assert all(np.isfinite(written.tensor(name)).all() for name in written.tensor_names())
    for outcome in report.blocks:
        assert outcome.is_reverted or outcome.loss < outcome.rtn_loss


def test_perplexity_in_the_report_is_that_of_the_written_checkpoint(tmp_path: Path, text: Path) -> None:
    from edgeawq.quantize.parallel import start_workers
    from edgeawq.quantize.perplexity import measure_perplexity, read_evaluation_tokens, stream_model

    model = make_tiny_model(11, quantized=False, tie=False, **SHAPE)
    evaluation = Evaluation(write_text(tmp_path / "texts" / "test.txt", 12, 1500), 700)
    report = quantize_model(
        model, tmp_path / "awq", quick_settings(), calibration=text, evaluation=evaluation, n_threads=2
    )
    quantize_model(model, tmp_path / "rtn", quick_settings(method="rtn"))
    assert report.evaluation is not None
    assert (report.evaluation.text, report.evaluation.n_tokens) == ("test.txt", 700)
    checkpoints = {"float": model, "rtn": open_model(str(tmp_path / "rtn")), "awq": open_model(str(tmp_path / "awq"))}
    assert list(report.evaluation.perplexity) == list(checkpoints)
    for name, checkpoint in checkpoints.items():
        chunks = read_evaluation_tokens(evaluation.path, checkpoint, 700)
        with start_workers(1) as workers, torch.no_grad():
            wanted = measure_perplexity(stream_model(checkpoint), chunks, workers).perplexity
        assert report.evaluation.perplexity[name] == pytest.approx(wanted, rel=1e-6), name


FAILURES = {
    "calibration": (run_blocks, "read_calibration"),
    "search": (block, "search_scales"),
    "loss": (block_task, "measure_block_loss"),
    "head": (run_output, "quantize_rtn"),
    "writing": (run_output, "write_awq_checkpoint"),
}


@pytest.mark.parametrize(
    ("place", "error", "existing"),
    [
        *((place, RuntimeError("boom"), False) for place in (*FAILURES, "half written", "loading")),
        ("search", KeyboardInterrupt(), False),
        ("writing", RuntimeError("boom"), True),
    ],
)
def test_nothing_is_left_after_a_failure(
    tmp_path: Path, text: Path, place: str, error: BaseException, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model(12, quantized=False, **{**SHAPE, "n_layers": 1})
    output = tmp_path / "out"
    if existing:
        quantize_model(model, output, quick_settings(method="rtn"))
    before = read_folder(tmp_path)

    def fail(*_: object, **__: object) -> Any:
        assert len(list(tmp_path.iterdir())) > 1 + existing  # a store was there
        raise error

    if place == "half written":
        monkeypatch.setattr(run_output, "list_linears", lambda run: (fail() for _ in range(1)))
    elif place == "loading":
        monkeypatch.setattr(BlockStore, "load", fail)
    else:
        monkeypatch.setattr(*FAILURES[place], fail)
    with pytest.raises(type(error)):
        quantize_model(model, output, quick_settings(), calibration=text, overwrite=existing, n_threads=1)
    assert read_folder(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts"][1 - existing :]
    assert not list(tmp_path.rglob("*partial*"))


def test_what_a_killed_run_left_behind_goes(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial-999999999-abc"
    left.mkdir()
    (left / "block-00000.npz").write_bytes(b"x")
    running = tmp_path / f".out.partial-{os.getpid()}-abc"
    running.mkdir()
    model = make_tiny_model(13, quantized=False, **{**SHAPE, "n_layers": 1})
    quantize_model(model, tmp_path / "out", quick_settings(method="rtn"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "out"]


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    model = make_tiny_model(14, quantized=False, **{**SHAPE, "n_layers": 1})
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not written by edgeawq"):
            quantize_model(model, output, quick_settings(method="rtn"), overwrite=overwrite)
    assert read_folder(tmp_path) == {"out/mine.txt": b"mine"}
    (output / "mine.txt").unlink()
    quantize_model(model, output, quick_settings(method="rtn"))
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        quantize_model(model, output, quick_settings(method="rtn"))
    quantize_model(model, output, quick_settings(method="rtn", head_bits=4), overwrite=True)
    head = open_model(str(output)).quantized_linear(EMBEDDING)
    assert head is not None
    assert head.bits == 4


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model(15, group_size=32, **SHAPE)
    with pytest.raises(UsageError, match="already quantized to 4 bits") as caught:
        quantize_model(model, tmp_path / "out", quick_settings())
    assert re.search("float model", str(caught.value.remedy))
    assert not list(tmp_path.iterdir())


def test_stored_blocks_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    linears: dict[str, QuantizedLinear] = {
        module: quantize_rtn(rng.standard_normal((24, 96)).astype(np.float32), 4, 32) for module in LINEARS
    }
    floats = {"input_layernorm.weight": torch.randn(96).half(), "self_attn.q_proj.bias": torch.randn(24).half()}
    store = BlockStore(tmp_path)
    store.save(3, QuantizedBlock(linears, floats))
    found = store.load(3)
    assert set(found.linears) == set(linears)
    assert all(is_same_grid(found.linears[module], linear) for module, linear in linears.items())
    assert all(torch.equal(found.floats[name], tensor) for name, tensor in floats.items())
    assert np.array_equal(dequantize(found.linears[LINEARS[0]]), dequantize(linears[LINEARS[0]]))
    with pytest.raises(QuantizationError, match="block 0 cannot be stored"):
        BlockStore(tmp_path / "absent").save(0, found)
