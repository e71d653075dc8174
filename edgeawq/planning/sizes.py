"""Bytes of a model in a bundle and in memory, exactly as the packager would write and the runtime would take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cpu_kernels import abi
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.tensor_shapes import has_bias, list_expected_shapes
from packager.manifest import ALIGNMENT, ModelSpec, TensorEntry, expected_tensors
from packager.records import GROUP_MULTIPLE, KERNEL_BITS, LAYOUTS, Layout, record_shape

GROUP_SIZES = (128, 64, 32)
HEADS = ("embed", "head")
_LAYOUT_OF = {
    "neon": "neon",
    "neon_dotprod": "neon",
    "neon_i8mm": "neon",
    "avx2": "avx2",
    "avxvnni": "avx2",
    "avx512vnni": "avx512",
}


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized: weights of the layers, and embedding and head (in groups of the same size)."""

    bits: int
    group_size: int
    head_bits: int

    def __str__(self) -> str:
        head = "" if self.head_bits == 8 else f", head {self.head_bits}"
        return f"w{self.bits}g{self.group_size}{head}"


def layout_of(isa: str) -> Layout:
    """The layout in which an instruction set wants its weights."""
    return LAYOUTS[_LAYOUT_OF[isa]]


def list_schemes(config: ModelConfig, head_bits: tuple[int, ...] = (8, 4)) -> list[Scheme]:
    """Every quantization of this model that the kernels can run: group sizes that divide all of its widths."""
    widths = {config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim}
    groups = [size for size in GROUP_SIZES if size % GROUP_MULTIPLE == 0 and not any(w % size for w in widths)]
    return [
        Scheme(bits, group, head)
        for bits in sorted(KERNEL_BITS, reverse=True)
        for group in groups
        for head in head_bits
    ]


@lru_cache(maxsize=512)
def _linear_bytes(layout: Layout, out_features: int, in_features: int, bits: int, group_size: int) -> int:
    return record_shape(layout, out_features, in_features, bits, group_size).total_bytes


def list_tensors(config: ModelConfig, layout: Layout, scheme: Scheme) -> tuple[TensorEntry, ...]:
    """Every tensor of the bundle's weights.bin, with its place: what a manifest would say.

    Raises BundleError for a width or group size that no kernel takes.
    """
    entries: list[TensorEntry] = []
    offset = 0
    for name, kind, out_features, in_features, required in expected_tensors(_describe(config)):
        part = name.rpartition(".")[2]
        if not required and not has_bias(config, {"qkv_bias": "self_attn.q_proj", "o_bias": "self_attn.o_proj"}[part]):
            continue
        bits, group_size, layout_name = 32, 0, ""
        if kind == "f32":
            nbytes = 4 * out_features
        else:
            bits = scheme.head_bits if name in HEADS else scheme.bits
            group_size, layout_name = scheme.group_size, layout.name
            halves = 2 if part == "gate_up" else 1  # each padded to whole records by itself
            nbytes = halves * _linear_bytes(layout, out_features // halves, in_features, bits, group_size)
        entries.append(
            TensorEntry(name, kind, bits, group_size, out_features, in_features, layout_name, offset, nbytes)
        )
        offset = _align(offset + nbytes)
    return tuple(entries)


def file_bytes(tensors: tuple[TensorEntry, ...]) -> int:
    """Bytes of weights.bin, which ends on a whole cache line."""
    return max(_align(tensor.offset + tensor.nbytes) for tensor in tensors)


def kv_cache_bytes(config: ModelConfig, context_length: int, kv_bits: int) -> int:
    """Bytes of keys and values of a context, rounded up to whole blocks; 8 bits: with a scale for each position."""
    positions = -(-context_length // abi.KV_BLOCK) * abi.KV_BLOCK
    rows = 2 * config.n_layers * config.n_kv_heads * positions
    return rows * (config.head_dim * kv_bits // 8 + (4 if kv_bits == 8 else 0))


def kv_bytes_read(config: ModelConfig, position: int, kv_bits: int) -> int:
    """Bytes of keys and values that one token reads when `position` tokens are in the cache."""
    return (
        2
        * config.n_layers
        * config.n_kv_heads
        * position
        * (config.head_dim * kv_bits // 8 + (4 if kv_bits == 8 else 0))
    )


def buffer_bytes(config: ModelConfig, context_length: int, threads: int) -> int:
    """Bytes that the decoder writes to, the KV cache left out: activations, scratch memory, rotary tables, logits."""
    width = config.n_heads * config.head_dim
    widest = max(config.hidden_size, config.intermediate_size, width)
    qkv = -(-(width + 2 * config.n_kv_heads * config.head_dim) // 16) * 16
    rows = 4 * (1 + config.hidden_size + qkv + config.intermediate_size) + abi.activation_row_bytes(widest)
    scratch = abi.scratch_bytes(
        config.hidden_size, config.intermediate_size, config.n_heads, config.n_kv_heads, config.head_dim
    )
    slots = abi.partial_slots(context_length)
    partial = 4 * slots * config.n_heads * (config.head_dim + 2)
    tables = 2 * 4 * context_length * (config.head_dim // 2)
    logits = 4 * (-(-config.vocab_size // 16) * 16)
    return abi.MAX_TOKENS * rows + threads * scratch + partial + tables + logits + 4 * abi.SYNC_WORDS


def count_weights(config: ModelConfig) -> tuple[int, int]:
    """Weights of the layers' matrices, and of embedding and head (once where they are tied)."""
    shapes = list_expected_shapes(config)
    total = sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    heads = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return total - heads, heads


def float16_bytes(config: ModelConfig) -> int:
    """Bytes of the model as it is published, 16 bits a weight: what the host has to download."""
    total = 0
    for shape in list_expected_shapes(config).values():
        total += 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
    return total


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _describe(config: ModelConfig) -> ModelSpec:
    fields = {key: getattr(config, key) for key in ModelSpec.__dataclass_fields__ if hasattr(config, key)}
    return ModelSpec(**{**fields, "name": "model", "rope_scaling": None, "rope_attention_factor": 1.0})
