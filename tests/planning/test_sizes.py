from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpu_kernels.build
from cpu_kernels.isa.catalog import ISAS
from device_profiles.profile import load_profile
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.planning.sizes import (
    Scheme,
    buffer_bytes,
    count_weights,
    file_bytes,
    kv_cache_bytes,
    layout_of,
    list_schemes,
    list_tensors,
)
from edgeawq.runtime.decoder_memory import CACHE_DTYPES, Buffers
from packager.manifest_reader import read_manifest
from packager.pack import pack_checkpoint
from tests.tiny_models import TinyCheckpoint, make_tiny_config, make_tiny_model

SHAPES: list[dict[str, Any]] = [
    {},
    {"tie": False, "attention_bias": True},
    {"n_heads": 5, "n_kv_heads": 1, "head_dim": 64, "hidden": 96, "group_size": 32, "intermediate": 96},
    {"vocab": 307, "tie": False},  # fills no whole record
    {"n_layers": 1, "head_dim": 2, "n_heads": 32, "n_kv_heads": 1, "hidden": 64, "intermediate": 64},
]


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels.build, "build_object", lambda target, isa, bits: b"\x7fELF")


def on_grid(model: TinyCheckpoint, bits: int) -> TinyCheckpoint:
    """The same model with its layers on a grid of other bits."""
    assert model.quantization is not None
    for module, grid in list(model.grids.items()):
        if module.startswith("model.layers."):
            model.grids[module] = quantize_rtn(model.tensors[f"{module}.weight"], bits, grid.group_size)
    model.quantization = type(model.quantization)(bits, model.quantization.group_size, True, "gemm")
    return model


@pytest.mark.parametrize("device", ["pi4", "pi5", "laptop-avx2", "laptop-avx512"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "head_bits"), [(4, 8), (4, 4), (8, 8)])
def test_sizes_are_those_of_a_real_bundle(
    tmp_path: Path, device: str, shape: dict[str, Any], bits: int, head_bits: int
) -> None:
    model = on_grid(make_tiny_model(head_bits=head_bits, **shape), bits)
    profile = load_profile(device)
    summary = pack_checkpoint(model, profile, tmp_path / "b")
    manifest = read_manifest(tmp_path / "b")
    scheme = Scheme(bits, shape.get("group_size", 64), head_bits)
    planned = list_tensors(model.config, layout_of(profile.target.isa), scheme)
    assert planned == manifest.tensors
    assert file_bytes(planned) == summary.weight_bytes == (tmp_path / "b" / "weights.bin").stat().st_size


def test_a_float_head_is_planned_as_pack_rounds_it(tmp_path: Path) -> None:
    model = make_tiny_model(head_bits=None)
    summary = pack_checkpoint(model, load_profile("pi4"), tmp_path / "b")
    assert file_bytes(list_tensors(model.config, layout_of("neon"), Scheme(4, 64, 8))) == summary.weight_bytes


@pytest.mark.parametrize("kv_bits", [8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_what_the_runtime_takes(shape: dict[str, Any], kv_bits: int) -> None:
    from edgeawq.planning.sizes import _describe

    rng = np.random.default_rng()
    sizes = {key: value for key, value in shape.items() if key != "group_size"}
    config = make_tiny_config(**sizes)
    context, threads = int(rng.integers(1, 700)), int(rng.integers(1, 9))
    buffers = Buffers(_describe(config), threads, context, CACHE_DTYPES["i8" if kv_bits == 8 else "f16"])
    cache = buffers.keys.nbytes + buffers.values.nbytes + buffers.key_scales.nbytes + buffers.value_scales.nbytes
    assert kv_cache_bytes(config, context, kv_bits) == cache
    tables = 2 * context * (config.head_dim // 2) * 4
    assert buffer_bytes(config, context, threads) == buffers.nbytes - cache + tables


def test_every_instruction_set_has_its_layout() -> None:
    assert {name: layout_of(name).name for name in ISAS} == {name: isa.layout for name, isa in ISAS.items()}


def test_schemes_divide_every_width() -> None:
    config = make_tiny_config(hidden=192, intermediate=320)
    assert {scheme.group_size for scheme in list_schemes(config)} == {64, 32}
    assert {scheme.bits for scheme in list_schemes(config)} == {2, 3, 4, 8}
    for scheme in list_schemes(config):
        assert list_tensors(config, layout_of("avx2"), scheme)


def test_weights_are_counted_once_where_they_are_tied() -> None:
    tied, untied = make_tiny_config(tie=True), make_tiny_config(tie=False)
    assert count_weights(tied)[1] * 2 == count_weights(untied)[1]
    assert count_weights(tied)[0] == count_weights(untied)[0] == _body(tied)


def _body(config: ModelConfig) -> int:
    width, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    attention = config.hidden_size * (2 * width + 2 * keys)
    return config.n_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
