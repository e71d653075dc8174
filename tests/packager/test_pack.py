from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_kernels.build
from cpu_kernels.isa.catalog import find_isa
from device_profiles.profile import load_profile
from device_profiles.target import Target
from edgeawq.checkpoints.config import RopeScaling
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.checkpoints.open_model import open_model
from edgeawq.checkpoints.rope import compute_rope
from edgeawq.errors import BundleError, CheckpointError, UnsupportedModelError, UsageError
from packager import tensors as tensors_module
from packager.bundle_files import verify_files
from packager.layouts import LAYOUTS, unpack_linear
from packager.manifest import Manifest
from packager.manifest_reader import read_manifest
from packager.pack import PackSummary, pack_checkpoint
from tests.tiny_models import TinyCheckpoint, make_tiny_awq_checkpoint, make_tiny_hf_checkpoint, make_tiny_model

DEVICES = ["pi4", "pi5", "laptop-avx2", "laptop-avx512"]


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels have tests of their own; here any bytes will do."""
    monkeypatch.setattr(cpu_kernels.build, "build_object", lambda target, isa, bits: b"\x7fELF" + f"{target}".encode())


def pack(model: Any, output: Path, device: str = "pi4", **options: Any) -> tuple[Manifest, PackSummary]:
    summary = pack_checkpoint(model, load_profile(device), output, **options)
    manifest = read_manifest(output)
    verify_files(output, manifest)
    return manifest, summary


def read_tensor(bundle: Path, manifest: Manifest, name: str) -> Any:
    """A tensor of a bundle: float32 vector, QuantizedLinear, or (gate, up)."""
    entry = manifest.tensor(name)
    assert entry is not None
    data = np.fromfile(bundle / "weights.bin", np.uint8, count=entry.nbytes, offset=entry.offset)
    if entry.kind == "f32":
        return data.view(np.float32)
    layout = LAYOUTS[entry.layout]
    shape = (entry.in_features, entry.bits, entry.group_size)
    if not name.endswith(".gate_up"):
        return unpack_linear(data, layout, entry.out_features, *shape)
    rows = entry.out_features // 2
    records = data.reshape(-(-rows // layout.record_rows), 2, -1)
    return tuple(unpack_linear(records[:, half].reshape(-1), layout, rows, *shape) for half in (0, 1))


def assert_same(packed: QuantizedLinear, *sources: QuantizedLinear) -> None:
    for field in ("q", "scales", "zeros"):
        expected = np.concatenate([getattr(source, field) for source in sources])
        assert getattr(packed, field).tobytes() == expected.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tie": False, "attention_bias": True},
        {"n_heads": 5, "n_kv_heads": 1, "head_dim": 64, "hidden": 96, "group_size": 32, "intermediate": 96},
        {"vocab": 307},  # fills no whole record
        {"n_layers": 1, "head_dim": 2, "n_heads": 32, "n_kv_heads": 1, "hidden": 64, "intermediate": 64},
    ],
)  # fmt: skip
def test_every_grid_arrives_bit_for_bit(tmp_path: Path, device: str, shape: dict[str, Any]) -> None:
    model = make_tiny_model(seed=len(device), **shape)
    manifest, summary = pack(model, tmp_path / "b", device)
    target = load_profile(device).target
    assert summary.layout == find_isa(target.isa, target.machine).layout
    assert {entry.layout for entry in manifest.tensors if entry.kind == "linear"} == {summary.layout}

    def get(name: str) -> Any:
        return read_tensor(tmp_path / "b", manifest, name)

    assert_same(get("embed"), model.grids["model.embed_tokens"])
    if not model.config.tie_word_embeddings:
        assert_same(get("head"), model.grids["lm_head"])
    np.testing.assert_array_equal(get("final_norm"), model.tensors["model.norm.weight"])
    np.testing.assert_array_equal(get("rope_inv_freq"), compute_rope(model.config)[0])
    for i in range(model.config.n_layers):
        prefix = f"model.layers.{i}"
        grids = [model.grids[f"{prefix}.self_attn.{part}_proj"] for part in "qkv"]
        assert_same(get(f"layers.{i}.qkv"), *grids)
        assert_same(get(f"layers.{i}.o"), model.grids[f"{prefix}.self_attn.o_proj"])
        gate, up = get(f"layers.{i}.gate_up")
        assert_same(gate, model.grids[f"{prefix}.mlp.gate_proj"])
        assert_same(up, model.grids[f"{prefix}.mlp.up_proj"])
        assert_same(get(f"layers.{i}.down"), model.grids[f"{prefix}.mlp.down_proj"])
        for name, norm in (("input_norm", "input_layernorm"), ("post_norm", "post_attention_layernorm")):
            np.testing.assert_array_equal(get(f"layers.{i}.{name}"), model.tensors[f"{prefix}.{norm}.weight"])
        if model.config.attention_bias:
            biases = [model.tensors[f"{prefix}.self_attn.{part}_proj.bias"] for part in "qkv"]
            np.testing.assert_array_equal(get(f"layers.{i}.qkv_bias"), np.concatenate(biases))
            bias = model.tensors[f"{prefix}.self_attn.o_proj.bias"]
            np.testing.assert_array_equal(get(f"layers.{i}.o_bias"), bias)


def test_slices_of_rows_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(seed=3, head_bits=None, vocab=331)
    whole, _ = pack(model, tmp_path / "whole")
    monkeypatch.setattr(tensors_module, "SLICE_WEIGHTS", 10 * model.config.hidden_size)  # 8 rows at a time
    sliced, _ = pack(model, tmp_path / "sliced")
    assert sliced == whole


def test_the_same_model_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        parts = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        return "\n".join(parts)

    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pack(make_tiny_model(seed), tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_from_an_awq_folder_as_from_memory(tmp_path: Path) -> None:
    model = make_tiny_model(4, tie=False)
    folder = make_tiny_awq_checkpoint(tmp_path / "awq", 4, tie=False)
    from_memory, _ = pack(model, tmp_path / "m")
    from_disk, summary = pack(open_model(str(folder)), tmp_path / "d")
    # norms went through float16 on the disk; all grids are the same
    for name in [entry.name for entry in from_disk.tensors if entry.kind == "linear" and "gate_up" not in entry.name]:
        assert_same(read_tensor(tmp_path / "d", from_disk, name), read_tensor(tmp_path / "m", from_memory, name))
    assert summary.notes == ()
    assert from_disk.model.name == "awq"
    assert replace(from_disk.model, name="") == replace(from_memory.model, name="")


@pytest.mark.parametrize("head_bits", [None, 4, 8])
@pytest.mark.parametrize("tie", [False, True])
def test_a_float_head_is_rounded_and_said_so(tmp_path: Path, head_bits: int | None, tie: bool) -> None:
    model = make_tiny_model(seed=5, head_bits=None, tie=tie)
    manifest, summary = pack(model, tmp_path / "b", head_bits=head_bits)
    bits = head_bits or 8
    modules = {"embed": "model.embed_tokens"} if tie else {"embed": "model.embed_tokens", "head": "lm_head"}
    for name, module in modules.items():
        expected = quantize_rtn(model.tensors[f"{module}.weight"], bits, 64)
        assert_same(read_tensor(tmp_path / "b", manifest, name), expected)
    assert len(summary.notes) == len(modules)
    assert all(f"rounded to {bits} bits" in note for note in summary.notes)


def test_a_head_on_a_grid_is_never_rounded_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8-bit grid") as caught:
        pack(make_tiny_model(), tmp_path / "b", head_bits=4)
    assert "--head-bits 4" in caught.value.remedy
    pack(make_tiny_model(), tmp_path / "b", head_bits=8)
    pack(make_tiny_model(head_bits=4), tmp_path / "c", head_bits=4)
    with pytest.raises(UsageError, match="16 bits"):
        pack(make_tiny_model(), tmp_path / "d", head_bits=16)
    assert not (tmp_path / "d").exists()


def test_a_head_of_an_odd_width_takes_a_smaller_group(tmp_path: Path) -> None:
    model = make_tiny_model(head_bits=None, group_size=32, hidden=96)
    assert model.quantization is not None
    model.quantization = replace(model.quantization, group_size=64)  # the body's own grids stay at 32
    manifest, summary = pack(model, tmp_path / "b")
    entry = manifest.tensor("embed")
    assert entry is not None
    assert entry.group_size == 32
    assert "groups of 32" in summary.notes[0]


def test_the_summary_counts_what_lies_on_the_disk(tmp_path: Path) -> None:
    for tie in (True, False):
        model = make_tiny_model(tie=tie)
        manifest, summary = pack(model, tmp_path / f"{tie}")
        files = [path for path in (tmp_path / f"{tie}").rglob("*") if path.is_file() and path.name != "manifest.json"]
        assert summary.bundle_bytes == sum(path.stat().st_size for path in files)
        assert summary.weight_bytes == (tmp_path / f"{tie}" / "weights.bin").stat().st_size
        assert summary.n_tensors == len(manifest.tensors)
        assert summary.n_weights == sum(grid.q.size for grid in model.grids.values())
        embed = manifest.tensor("embed")
        assert embed is not None
        every = sum(entry.nbytes for entry in manifest.tensors)
        skipped = 0 if tie else embed.nbytes - embed.nbytes // embed.out_features
        assert summary.bytes_per_token == every - skipped
        assert 4.3 < summary.bits_per_weight < 6


def test_text_files(tmp_path: Path) -> None:
    model = make_tiny_model()
    model.config = replace(model.config, eos_token_ids=(0,))
    model.generation_defaults = {"temperature": 0.5, "top_k": 7, "do_sample": True, "max_new_tokens": 9}
    manifest, _ = pack(model, tmp_path / "b")
    generation = json.loads((tmp_path / "b" / "generation.json").read_text())
    assert generation == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "add_bos_token": False,
        "stop_token_ids": [0, 2],  # of the configuration, and the tokenizer's own end
        "defaults": {"temperature": 0.5, "top_k": 7, "do_sample": True},
    }
    assert (tmp_path / "b" / "tokenizer.json").read_text() == model.tokenizer.tokenizer_json
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == model.tokenizer.chat_template
    model.tokenizer = replace(model.tokenizer, chat_template=None)
    manifest, _ = pack(model, tmp_path / "c")
    assert manifest.file("chat_template") is None
    model.tokenizer = replace(model.tokenizer, tokenizer_json="{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        pack(model, tmp_path / "d")


def test_model_and_device_are_described(tmp_path: Path) -> None:
    scaling = RopeScaling("yarn", factor=4.0, original_max_position_embeddings=128)
    model = make_tiny_model(rope_scaling=scaling)
    model.name = "some org/Näme v1.0"
    manifest, _ = pack(model, tmp_path / "b", "pi5")
    assert manifest.model.name == "some-org-N-me-v1.0"
    assert manifest.model.rope_scaling is not None
    assert manifest.model.rope_scaling.factor == 4.0
    assert manifest.model.rope_attention_factor == pytest.approx(1.1386, abs=1e-4)
    assert manifest.model.eos_token_ids == (2,)
    target = load_profile("pi5").target
    assert manifest.device.profile == "pi5"
    assert manifest.device.isas == (target.isa,)
    kernel = manifest.kernels[0]
    assert Target(kernel.triple, kernel.cpu, kernel.features, kernel.isa) == target
    assert (tmp_path / "b" / kernel.file).read_bytes() == b"\x7fELF" + str(target).encode()


def test_progress_grows_to_its_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    _, summary = pack(make_tiny_model(), tmp_path / "b", progress=lambda *step: seen.append(step))
    assert [name for name, _, _ in seen][:2] == ["kernels", "embed"]
    done = [step[1] for step in seen]
    assert done == sorted(done)
    assert len({total for _, _, total in seen}) == 1
    assert seen[-1][1] >= 0.95 * seen[-1][2]
    assert len(seen) == 1 + summary.n_tensors


def test_the_golden_answer_is_recorded_before_the_bundle_appears(tmp_path: Path) -> None:
    def record(folder: Path) -> dict[str, Any]:
        assert not (tmp_path / "b").exists()
        verify_files(folder, read_manifest(folder))
        return {"expected_tokens": [1, 2, 3]}

    manifest, summary = pack(make_tiny_model(), tmp_path / "b", golden=record)
    assert summary.golden
    assert manifest.file("golden") is not None
    assert json.loads((tmp_path / "b" / "golden.json").read_text()) == {"expected_tokens": [1, 2, 3]}
    _, summary = pack(make_tiny_model(), tmp_path / "c", golden=lambda folder: None)
    assert not summary.golden


def test_a_failing_recorder_leaves_no_bundle(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        raise BundleError("the model answers nonsense")

    with pytest.raises(BundleError, match="nonsense"):
        pack(make_tiny_model(), tmp_path / "b", golden=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_float_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = make_tiny_hf_checkpoint(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="float model") as caught:
        pack(open_model(str(folder)), tmp_path / "b")
    assert "edgeawq quantize" in caught.value.remedy


def break_model(model: TinyCheckpoint, how: str) -> None:
    module = "model.layers.1.mlp.down_proj"
    grid = model.grids[module]
    if how == "float":
        del model.grids[module]
    elif how == "nibble":
        grid.q[3, 5] = 16
    elif how == "zero":
        grid.zeros[2, 1] = 200
    elif how == "scale":
        grid.scales[0, 0] = np.nan
    elif how == "shape":
        model.grids[module] = replace(grid, q=grid.q[:-8], scales=grid.scales[:-8], zeros=grid.zeros[:-8])
    elif how == "norm":
        model.tensors["model.layers.0.input_layernorm.weight"] = np.ones(7, np.float32)
    elif how == "group":
        q_proj = model.tensors["model.layers.0.self_attn.q_proj.weight"]
        model.grids["model.layers.0.self_attn.q_proj"] = quantize_rtn(q_proj, bits=4, group_size=32)
    elif how == "small group":
        weight = model.tensors[f"{module}.weight"]
        model.grids[module] = quantize_rtn(weight, bits=4, group_size=16)
    elif how == "q_norm":
        model.tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(32, np.float32)
    elif how == "bias":
        model.tensors["model.layers.0.mlp.up_proj.bias"] = np.ones(320, np.float32)
    elif how == "mlp_bias":
        model.config = replace(model.config, mlp_bias=True)


@pytest.mark.parametrize(
    ("how", "kind", "match"),
    [
        ("float", CheckpointError, "stored in float"),
        ("nibble", CheckpointError, "value 16"),
        ("zero", CheckpointError, "value 200"),
        ("scale", CheckpointError, "no number"),
        ("shape", CheckpointError, "needs"),
        ("norm", CheckpointError, "shape"),
        ("group", UnsupportedModelError, "differ in bits or group size"),
        ("small group", BundleError, "groups of 16"),
        ("q_norm", UnsupportedModelError, "q_norm"),
        ("bias", UnsupportedModelError, r"up_proj\.bias"),
        ("mlp_bias", UnsupportedModelError, "MLP"),
    ],
)
def test_what_a_bundle_cannot_hold_is_refused_and_nothing_is_left(
    tmp_path: Path, how: str, kind: type[Exception], match: str
) -> None:
    model = make_tiny_model()
    break_model(model, how)
    with pytest.raises(kind, match=match):
        pack(model, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_tied_model_may_store_its_head_a_second_time(tmp_path: Path) -> None:
    model = make_tiny_model()
    model.tensors["lm_head.weight"] = model.tensors["model.embed_tokens.weight"]
    model.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    manifest, _ = pack(model, tmp_path / "b")
    assert manifest.tensor("head") is None


def test_biases_that_only_some_projections_have_are_filled_with_zeros(tmp_path: Path) -> None:
    model = make_tiny_model(attention_bias=True)
    for i in range(2):
        del model.tensors[f"model.layers.{i}.self_attn.k_proj.bias"]
        del model.tensors[f"model.layers.{i}.self_attn.o_proj.bias"]
    manifest, _ = pack(model, tmp_path / "b")
    bias = read_tensor(tmp_path / "b", manifest, "layers.1.qkv_bias")
    config = model.config
    keys = slice(config.n_heads * config.head_dim, (config.n_heads + config.n_kv_heads) * config.head_dim)
    assert (bias[keys] == 0).all()
    np.testing.assert_array_equal(bias[: keys.start], model.tensors["model.layers.1.self_attn.q_proj.bias"])
    assert manifest.tensor("layers.0.o_bias") is None
