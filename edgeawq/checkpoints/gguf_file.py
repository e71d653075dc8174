"""A GGUF file as a Checkpoint: tensors by their Hugging Face names, dequantized when asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.gguf_config import read_gguf_config, recognize_llama3_scaling
from edgeawq.checkpoints.gguf_header import read_header
from edgeawq.checkpoints.gguf_tensors import count_bytes, dequantize_tensor
from edgeawq.checkpoints.gguf_tokenizer import read_tokenizer, read_vocabulary
from edgeawq.checkpoints.mapped_file import MappedFile
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear, TokenizerFiles
from edgeawq.checkpoints.tensor_shapes import EMBEDDING, FINAL_NORM, HEAD, check_shapes, list_expected_shapes
from edgeawq.errors import CheckpointError, UnsupportedModelError

TOP_LEVEL_NAMES = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
LAYER_TENSOR = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
# llama.cpp's file names end in the quantization, which says nothing about the model itself.
QUANTIZATION_SUFFIX = re.compile(r"[-._](?:(?:i?q\d[\w]*)|f16|f32|bf16|mxfp4\w*)$", re.IGNORECASE)
GUESSED_SPLIT_NOTE = (
    "the file does not say how its tokenizer splits words (tokenizer.ggml.pre); llama.cpp's default is used, "
    "which may cost quality"
)
SAMPLING_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


class GgufCheckpoint:
    """A Checkpoint over a memory-mapped GGUF file; opening reads the header only."""

    def __init__(
        self, path: Path, *, name: str = "", generation_defaults: dict[str, float | int | bool] | None = None
    ) -> None:
        self.path = path
        self._file = MappedFile(path)
        header = read_header(self._file)
        self._metadata = header.metadata
        n_parts = header.metadata.get("split.count", 1)
        if n_parts not in (0, 1):
            raise UnsupportedModelError(
                f"{path} is one of {n_parts} parts of a model; a GGUF file is read as a whole",
                remedy="join the parts: llama-gguf-split --merge FIRST_PART OUTPUT.gguf",
            )
        self._name = name or QUANTIZATION_SUFFIX.sub("", path.stem)
        self._generation_defaults = generation_defaults
        self._tensors = {name_tensor(tensor.name, path): tensor for tensor in header.tensors.values()}
        for tensor in self._tensors.values():
            self._file.require(tensor.offset, count_bytes(tensor), f"the tensor {tensor.name}")
        self._rope_factors = self._tensors.pop(ROPE_FACTORS, None)
        self._vocabulary = read_vocabulary(header.metadata)
        self._config = self._read_config()
        expected = self._shapes = list_expected_shapes(self._config)
        check_shapes(expected, {name: tensor.shape for name, tensor in self._tensors.items()}, str(path))
        unexpected = sorted(set(self._tensors) - set(expected))
        if unexpected:
            raise UnsupportedModelError(f"{path}: the tensor {unexpected[0]} has no place in a Llama decoder")

    def _read_config(self) -> ModelConfig:
        layer = "model.layers.0."
        biases = tuple(
            f"{layer}{module}.bias" in self._tensors
            for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
        )
        config = read_gguf_config(
            self._metadata, self._vocabulary, tied=HEAD not in self._tensors, biases=(biases[0], biases[1], biases[2])
        )
        if self._metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in self._metadata:
            config = replace(config, notes=(*config.notes, GUESSED_SPLIT_NOTE))
        if EMBEDDING in self._tensors:
            # The matrix may have more rows than there are tokens (padded for the trainer's hardware).
            rows = self._tensors[EMBEDDING].shape[0]
            config = replace(config, vocab_size=max(rows, config.vocab_size))
        if self._rope_factors is not None and config.rope_scaling is None:
            factors = dequantize_tensor(self._file, self._rope_factors)
            scaling = recognize_llama3_scaling(factors, config.head_dim, config.rope_theta)
            config = replace(config, rope_scaling=scaling)
        return config

    @property
    def name(self) -> str:
        """The name given, or the file's without its quantization."""
        return self._name

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self._config

    @cached_property
    def tokenizer(self) -> TokenizerFiles:
        """Tokenizer and chat template, rebuilt from the metadata."""
        return read_tokenizer(self._metadata, self._vocabulary)

    @property
    def generation_defaults(self) -> dict[str, float | int | bool]:
        """The file's own sampling defaults, where it has some."""
        if self._generation_defaults is not None:
            return dict(self._generation_defaults)
        found = {name: self._metadata.get(key) for key, name in SAMPLING_KEYS.items()}
        return {name: value for name, value in found.items() if isinstance(value, (int, float))}

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Always None: GGUF's own quantization is undone on reading."""
        return None

    def tensor_names(self) -> list[str]:
        """Hugging Face names in the model's order."""
        return list(self._shapes)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A float32 tensor; q and k rows are in Hugging Face's order."""
        found = self._tensors.get(name)
        if found is None:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        values = dequantize_tensor(self._file, found)
        if self._config.model_type == "llama":
            if ".q_proj." in name:
                return restore_rotary_order(values, self._config.n_heads)
            if ".k_proj." in name:
                return restore_rotary_order(values, self._config.n_kv_heads)
        return values

    def quantized_linear(self, module: str) -> QuantizedLinear | None:
        """Always None: no module is on AWQ's grid."""
        return None


def name_tensor(name: str, path: Path) -> str:
    """The Hugging Face name of a GGUF tensor; raises UnsupportedModelError for one that a Llama decoder lacks."""
    if name == ROPE_FACTORS or name in TOP_LEVEL_NAMES:
        return TOP_LEVEL_NAMES.get(name, name)
    match = LAYER_TENSOR.fullmatch(name)
    if match is None or match[2] not in LAYER_NAMES:
        raise UnsupportedModelError(
            f"{path}: the tensor {name} has no place in a Llama decoder, so the model cannot be run faithfully",
            remedy="choose a dense model of the Llama family (Llama, Mistral, SmolLM2, TinyLlama, Qwen2 …)",
        )
    return f"model.layers.{int(match[1])}.{LAYER_NAMES[match[2]]}.{match[3]}"


def restore_rotary_order(values: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's reordering of q and k rows.

    llama.cpp rotates neighbouring rows (2i, 2i+1) of a head, Hugging Face rows (i, i + head_dim/2); its converter
    interleaves the halves of each head. `values` is [n_heads * head_dim, …].
    """
    pairs = values.reshape(n_heads, -1, 2, *values.shape[1:])  # [heads, head_dim / 2, 2, …]
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
