"""Memory of the native decoder: its buffers, and the context that tells it where everything lies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cpu_kernels import abi
from edgeawq.runtime.bundle import Bundle
from packager.manifest import ModelSpec, TensorEntry

FloatArray = npt.NDArray[np.float32]

# About 40 µs of pauses on a desktop CPU: longer than any barrier of an idle machine, shorter than a time slice.
SPIN_LIMIT = 1000
CACHE_DTYPES: dict[str, np.dtype[Any]] = {
    "i8": np.dtype(np.int8),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}


class Buffers:
    """Everything the native code writes to. Zeroed memory is taken from the system when it is first touched."""

    def __init__(self, model: ModelSpec, n_threads: int, context_length: int, cache_dtype: np.dtype[Any]) -> None:
        attention_width = model.n_heads * model.head_dim
        widest = max(model.hidden_size, model.intermediate_size, attention_width)
        blocks = -(-context_length // abi.KV_BLOCK)
        slots = abi.partial_slots(context_length)
        self.cache_length = blocks * abi.KV_BLOCK
        self.qkv_stride = attention_width + 2 * model.n_kv_heads * model.head_dim
        self.logits_stride = -(-model.vocab_size // 16) * 16
        self.row_bytes = abi.activation_row_bytes(widest)
        self.scratch_bytes = abi.scratch_bytes(
            model.hidden_size, model.intermediate_size, model.n_heads, model.n_kv_heads, model.head_dim
        )
        cache = (model.n_layers, model.n_kv_heads, self.cache_length * model.head_dim)
        self.keys = _aligned_zeros(cache, cache_dtype)  # [layers, kv heads, blocks · head_dim · KV_BLOCK]
        self.values = _aligned_zeros(cache, cache_dtype)  # [layers, kv heads, positions · head_dim]
        scales = (model.n_layers, model.n_kv_heads, self.cache_length if cache_dtype == np.int8 else 0)
        self.key_scales = _aligned_zeros(scales, np.float32)  # [layers, kv heads, positions]
        self.value_scales = _aligned_zeros(scales, np.float32)
        self.tokens = _aligned_zeros((abi.MAX_TOKENS,), np.int32)
        self.residual = _aligned_zeros((abi.MAX_TOKENS, model.hidden_size), np.float32)
        self.qkv = _aligned_zeros((abi.MAX_TOKENS, -(-self.qkv_stride // 16) * 16), np.float32)
        self.gated = _aligned_zeros((abi.MAX_TOKENS, model.intermediate_size), np.float32)
        self.rows = _aligned_zeros((abi.MAX_TOKENS, self.row_bytes), np.uint8)
        self.scratch = _aligned_zeros((n_threads, self.scratch_bytes), np.uint8)
        self.partial = _aligned_zeros((slots, model.n_heads, model.head_dim), np.float32)
        self.partial_state = _aligned_zeros((slots, model.n_heads, 2), np.float32)
        self.sync = _aligned_zeros((abi.SYNC_WORDS,), np.int32)
        self.logits = _aligned_zeros((1, self.logits_stride), np.float32)

    def grow_logits(self, rows: int) -> None:
        """Make room for the logits of `rows` tokens."""
        if self.logits.shape[0] < rows:
            self.logits = _aligned_zeros((rows, self.logits_stride), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))


def _aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """np.zeros that starts on a cache line."""
    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    memory = np.zeros(nbytes + 64, np.uint8)
    start = -int(memory.ctypes.data) % 64
    return memory[start : start + nbytes].view(kind).reshape(shape)


def make_rotary_tables(bundle: Bundle, context_length: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines, float32 [positions, head_dim / 2]; angles rounded to float32 as in the reference models."""
    positions = np.arange(context_length, dtype=np.float32)
    angles = positions[:, None] * bundle.float_tensor("rope_inv_freq")[None, :]
    factor = bundle.manifest.model.rope_attention_factor
    wide = angles.astype(np.float64)
    return (np.cos(wide) * factor).astype(np.float32), (np.sin(wide) * factor).astype(np.float32)


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def _write_linear(words: npt.NDArray[np.int64], bundle: Bundle, tensor: TensorEntry, bias: TensorEntry | None) -> None:
    words[abi.WEIGHTS] = bundle.address(tensor)
    words[abi.OUT_FEATURES] = tensor.out_features
    words[abi.IN_FEATURES] = tensor.in_features
    words[abi.GROUP_SIZE] = tensor.group_size
    words[abi.BITS] = tensor.bits
    words[abi.BIAS] = 0 if bias is None else bundle.address(bias)


def _write_layer(words: npt.NDArray[np.int64], bundle: Bundle, buffers: Buffers, index: int) -> None:
    prefix = f"layers.{index}"
    words[abi.INPUT_NORM] = bundle.address(bundle.tensor(f"{prefix}.input_norm"))
    words[abi.POST_NORM] = bundle.address(bundle.tensor(f"{prefix}.post_norm"))
    for name, start in (
        ("qkv", abi.LAYER_QKV),
        ("o", abi.LAYER_O),
        ("gate_up", abi.LAYER_GATE_UP),
        ("down", abi.LAYER_DOWN),
    ):
        bias = bundle.manifest.tensor(f"{prefix}.{name}_bias")
        _write_linear(words[start : start + abi.LINEAR_WORDS], bundle, bundle.tensor(f"{prefix}.{name}"), bias)
    words[abi.KEYS] = buffers.keys[index].ctypes.data
    words[abi.VALUES] = buffers.values[index].ctypes.data
    words[abi.KEY_SCALES] = buffers.key_scales[index].ctypes.data
    words[abi.VALUE_SCALES] = buffers.value_scales[index].ctypes.data


def make_context(
    bundle: Bundle,
    buffers: Buffers,
    cosines: FloatArray,
    sines: FloatArray,
    n_threads: int,
    kv_bits: int,
) -> npt.NDArray[np.int64]:
    """The native code's context (`cpu_kernels.abi`), followed by what it points to: layers, embedding and head."""
    model = bundle.manifest.model
    layers_at = abi.CONTEXT_WORDS
    embed_at = layers_at + model.n_layers * abi.LAYER_WORDS
    head_at = embed_at + abi.LINEAR_WORDS
    context = np.zeros(head_at + abi.LINEAR_WORDS, np.int64)
    base = int(context.ctypes.data)
    context[abi.N_THREADS] = n_threads
    context[abi.N_LAYERS] = model.n_layers
    context[abi.HIDDEN_SIZE] = model.hidden_size
    context[abi.INTERMEDIATE_SIZE] = model.intermediate_size
    context[abi.N_HEADS] = model.n_heads
    context[abi.N_KV_HEADS] = model.n_kv_heads
    context[abi.HEAD_DIM] = model.head_dim
    context[abi.CONTEXT_LENGTH] = buffers.cache_length
    context[abi.EPS_BITS] = _float_bits(model.rms_norm_eps)
    context[abi.ATTENTION_SCALE_BITS] = _float_bits(1 / math.sqrt(model.head_dim))
    context[abi.SPIN_LIMIT] = SPIN_LIMIT
    context[abi.KV_BITS] = kv_bits
    context[abi.TOKENS] = buffers.tokens.ctypes.data
    context[abi.LAYERS] = base + 8 * layers_at
    context[abi.EMBED] = base + 8 * embed_at
    context[abi.HEAD] = base + 8 * (embed_at if model.tie_word_embeddings else head_at)
    context[abi.FINAL_NORM] = bundle.address(bundle.tensor("final_norm"))
    context[abi.COSINES] = cosines.ctypes.data
    context[abi.SINES] = sines.ctypes.data
    context[abi.RESIDUAL] = buffers.residual.ctypes.data
    context[abi.QKV] = buffers.qkv.ctypes.data
    context[abi.QKV_STRIDE] = buffers.qkv.shape[1]
    context[abi.GATED] = buffers.gated.ctypes.data
    context[abi.GATED_STRIDE] = buffers.gated.shape[1]
    context[abi.LOGITS] = buffers.logits.ctypes.data
    context[abi.LOGITS_STRIDE] = buffers.logits_stride
    context[abi.ROWS] = buffers.rows.ctypes.data
    context[abi.ROW_BYTES] = buffers.row_bytes
    context[abi.SCRATCH] = buffers.scratch.ctypes.data
    context[abi.SCRATCH_BYTES] = buffers.scratch_bytes
    context[abi.PARTIAL] = buffers.partial.ctypes.data
    context[abi.PARTIAL_STATE] = buffers.partial_state.ctypes.data
    context[abi.SYNC] = buffers.sync.ctypes.data
    for index in range(model.n_layers):
        start = layers_at + index * abi.LAYER_WORDS
        _write_layer(context[start : start + abi.LAYER_WORDS], bundle, buffers, index)
    _write_linear(context[embed_at:head_at], bundle, bundle.tensor("embed"), None)
    if not model.tie_word_embeddings:
        _write_linear(context[head_at:], bundle, bundle.tensor("head"), None)
    return context
