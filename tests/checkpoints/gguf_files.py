"""Tiny GGUF files, written with the `gguf` library and llama.cpp's own row order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.tiny_models import TinyCheckpoint, make_tiny_model

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permute_for_llama_cpp(weights: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """Row by row: llama.cpp's row 2i of a head is Hugging Face's row i, its row 2i + 1 is row i + head_dim / 2."""
    head_dim = weights.shape[0] // n_heads
    result = np.empty_like(weights)
    for head in range(n_heads):
        for i in range(head_dim // 2):
            result[head * head_dim + 2 * i] = weights[head * head_dim + i]
            result[head * head_dim + 2 * i + 1] = weights[head * head_dim + i + head_dim // 2]
    return result


def write_gguf(
    path: Path,
    model: TinyCheckpoint,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, npt.NDArray[np.float32]] | None = None,
    leave_out: frozenset[str] = frozenset(),
) -> Path:
    """Write a model; `metadata` adds or (with None) drops keys, `kind` is the type of the matrices."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    described = json.loads(model.tokenizer.tokenizer_json)
    vocab = sorted(described["model"]["vocab"], key=described["model"]["vocab"].__getitem__)
    vocab += [f"<unused{number}>" for number in range(config.vocab_size - len(vocab))]
    specials = {token["content"] for token in described["added_tokens"]}
    prefix = f"{architecture}."
    values: dict[str, Any] = {
        f"{prefix}block_count": config.n_layers,
        f"{prefix}context_length": config.max_position_embeddings,
        f"{prefix}embedding_length": config.hidden_size,
        f"{prefix}feed_forward_length": config.intermediate_size,
        f"{prefix}attention.head_count": config.n_heads,
        f"{prefix}attention.head_count_kv": config.n_kv_heads,
        f"{prefix}attention.key_length": config.head_dim,
        f"{prefix}attention.value_length": config.head_dim,
        f"{prefix}attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{prefix}rope.freq_base": config.rope_theta,
        f"{prefix}rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [3 if token in specials else 1 for token in vocab],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in described["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
        "tokenizer.chat_template": model.tokenizer.chat_template,
    }
    for key, value in (values | (metadata or {})).items():
        add_value(writer, key, value)
    for name, tensor in model.tensors.items():
        if name in leave_out:
            continue
        values_to_write = tensor
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values_to_write = permute_for_llama_cpp(tensor, config.n_heads if "q_proj" in name else config.n_kv_heads)
        add_tensor(writer, rename(name), values_to_write, kind)
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None or key == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_tensor(
    writer: gguf.GGUFWriter, name: str, values: npt.NDArray[np.float32], kind: gguf.GGMLQuantizationType
) -> None:
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def rename(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.{kind}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[inner]}.{kind}"


def make_gguf(path: Path, seed: int = 0, *, write: dict[str, Any] | None = None, **shape: Any) -> TinyCheckpoint:
    """Write a tiny float model to `path` and return it."""
    model = make_tiny_model(seed, quantized=False, **shape)
    write_gguf(path, model, **(write or {}))
    return model
