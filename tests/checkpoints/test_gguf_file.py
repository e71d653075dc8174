from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest

from edgeawq.checkpoints import gguf_tensors
from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.checkpoints.gguf_header import GgufTensor
from edgeawq.errors import CheckpointError, MissingExtraError, UnsupportedModelError
from tests.checkpoints.gguf_files import make_gguf

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize(
    "shape", [{}, {"tie": False, "head_dim": 16, "n_heads": 4, "n_kv_heads": 4}, {"attention_bias": True}]
)
def test_float_tensors_are_those_of_the_hugging_face_model(tmp_path, shape):
    model = make_gguf(tmp_path / "m.gguf", 5, **shape)
    opened = GgufCheckpoint(tmp_path / "m.gguf")
    # Token 0 is <|endoftext|>: it ends an answer too, whether or not the file says so.
    assert opened.config == replace(model.config, eos_token_ids=(2, 0))
    assert set(opened.tensor_names()) == set(model.tensors)
    for name, values in model.tensors.items():
        found = opened.tensor(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, values), name
    assert opened.quantization is None
    assert opened.quantized_linear("model.layers.0.mlp.up_proj") is None
    assert opened.generation_defaults == {}


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(KINDS.F16, 1e-3), (KINDS.Q8_0, 0.01), (KINDS.Q4_1, 0.12), (KINDS.BF16, 0.01)]
)
def test_quantized_types_are_dequantized(tmp_path, monkeypatch, kind, tolerance):
    model = make_gguf(tmp_path / "m.gguf", 6, write={"kind": kind})
    whole = {name: GgufCheckpoint(tmp_path / "m.gguf").tensor(name) for name in model.tensors}
    for name, values in model.tensors.items():
        assert np.linalg.norm(whole[name] - values) <= tolerance * np.linalg.norm(values), name
    # Slices of rows give the same as the whole.
    monkeypatch.setattr(gguf_tensors, "SLICE_ELEMENTS", 500)
    for name, values in whole.items():
        assert np.array_equal(GgufCheckpoint(tmp_path / "m.gguf").tensor(name), values)


def test_qwen2_keeps_its_row_order_and_has_no_output_bias(tmp_path):
    drop = frozenset(f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(2))
    write = {"architecture": "qwen2", "leave_out": drop, "metadata": {"tokenizer.ggml.pre": "qwen2"}}
    model = make_gguf(tmp_path / "m.gguf", 7, write=write, attention_bias=True)
    opened = GgufCheckpoint(tmp_path / "m.gguf")
    assert (opened.config.model_type, opened.config.attention_bias) == ("qwen2", True)
    assert opened.config.attention_output_bias is False
    assert set(opened.tensor_names()) == set(model.tensors) - drop
    for name in opened.tensor_names():
        assert np.array_equal(opened.tensor(name), model.tensors[name]), name


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Llama-3.2-1B-Instruct"),
        ("model-f16", "model"),
        ("tiny_IQ4_XS", "tiny"),
        ("plain", "plain"),
    ],
)
def test_the_name_leaves_out_the_quantization(tmp_path, stem, name):
    make_gguf(tmp_path / f"{stem}.gguf", 1)
    assert GgufCheckpoint(tmp_path / f"{stem}.gguf").name == name


def test_sampling_defaults_come_from_the_metadata(tmp_path):
    metadata = {"general.sampling.temp": 0.25, "general.sampling.top_k": 20, "general.sampling.mirostat": 1}
    make_gguf(tmp_path / "m.gguf", 1, write={"metadata": metadata})
    assert GgufCheckpoint(tmp_path / "m.gguf").generation_defaults == {"temperature": 0.25, "top_k": 20}


def test_a_file_that_does_not_name_its_split_is_noted(tmp_path):
    make_gguf(tmp_path / "m.gguf", 1, write={"metadata": {"tokenizer.ggml.pre": None}})
    opened = GgufCheckpoint(tmp_path / "m.gguf")
    assert "tokenizer.ggml.pre" in opened.config.notes[0]
    assert opened.tokenizer.tokenizer_json
    make_gguf(tmp_path / "m.gguf", 1)
    assert GgufCheckpoint(tmp_path / "m.gguf").config.notes == ()


def test_more_rows_than_tokens_are_kept(tmp_path):
    model = make_gguf(tmp_path / "m.gguf", 1, vocab=352)
    tokens = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.tokens"].contents()
    metadata = {"tokenizer.ggml.tokens": tokens[:320], "tokenizer.ggml.token_type": [1] * 320}
    make_gguf(tmp_path / "m.gguf", 1, write={"metadata": metadata}, vocab=352)
    assert GgufCheckpoint(tmp_path / "m.gguf").config.vocab_size == model.config.vocab_size == 352


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        ({"leave_out": frozenset({"model.layers.1.mlp.up_proj.weight"})}, CheckpointError, "up_proj.weight is missing"),
        (
            {"extra_tensors": {"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}},
            UnsupportedModelError,
            "attn_q_norm",
        ),
        ({"extra_tensors": {"blk.7.attn_q.weight": np.ones((2, 2), np.float32)}}, UnsupportedModelError, "layers.7"),
        ({"extra_tensors": {"mm.0.weight": np.ones(32, np.float32)}}, UnsupportedModelError, "mm.0.weight"),
        ({"metadata": {"llama.feed_forward_length": 64}}, CheckpointError, r"shape \[320, 192\]"),
        ({"metadata": {"split.count": 3}}, UnsupportedModelError, "3 parts"),
        ({"architecture": "gemma"}, UnsupportedModelError, "gemma"),
        ({"metadata": {"llama.expert_count": 8}}, UnsupportedModelError, "expert_count"),
        ({"metadata": {"llama.logit_scale": 0.5}}, UnsupportedModelError, "logit_scale"),
        ({"metadata": {"llama.rope.dimension_count": 16}}, UnsupportedModelError, "16 of 32"),
        ({"metadata": {"llama.block_count": None}}, CheckpointError, "llama.block_count is None"),
        ({"metadata": {"llama.block_count": 5_000_000}}, CheckpointError, "n_layers is 5,000,000"),
        ({"metadata": {"llama.attention.head_count_kv": 4}}, CheckpointError, "6 heads cannot share 4"),
        ({"metadata": {"llama.context_length": 0}}, CheckpointError, "max_position_embeddings is 0"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 99_999}}, CheckpointError, "99999, outside"),
        ({"metadata": {"tokenizer.ggml.tokens": None}}, CheckpointError, "no vocabulary"),
        ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, CheckpointError, "2 token types"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, write, error, words):
    make_gguf(tmp_path / "m.gguf", 1, write=write)
    with pytest.raises(error, match=words):
        GgufCheckpoint(tmp_path / "m.gguf")


def test_an_unknown_tensor_type_is_named():
    with pytest.raises(UnsupportedModelError, match="type 4242"):
        gguf_tensors.count_bytes(GgufTensor("t", (2, 32), 4242, 0))
    with pytest.raises(CheckpointError, match="blocks of 32"):
        gguf_tensors.count_bytes(GgufTensor("t", (2, 33), int(KINDS.Q8_0), 0))
    with pytest.raises(CheckpointError, match="shape"):
        gguf_tensors.count_bytes(GgufTensor("t", (2, 0), 0, 0))


def test_a_type_that_the_library_cannot_dequantize_is_named(tmp_path, monkeypatch):
    make_gguf(tmp_path / "m.gguf", 1)
    opened = GgufCheckpoint(tmp_path / "m.gguf")

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(UnsupportedModelError, match="F32.*cannot dequantize"):
        opened.tensor("model.norm.weight")


def test_a_tensor_that_is_not_there(tmp_path):
    make_gguf(tmp_path / "m.gguf", 1)
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        GgufCheckpoint(tmp_path / "m.gguf").tensor("lm_head.weight")


def test_without_the_gguf_library_the_remedy_is_the_pip_command(tmp_path, monkeypatch):
    make_gguf(tmp_path / "m.gguf", 1)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError) as caught:
        GgufCheckpoint(tmp_path / "m.gguf")
    assert caught.value.remedy == "pip install 'edgeawq[host]'"
