"""What each kernel costs: operations (a multiply-add is 2) and bytes of its operands, each counted once a pass.

Plain arithmetic that imports nothing but the ABI, so that a device can use it. Together with a measured time an
estimate gives the kernel's place under the roofline.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpu_kernels.abi import QUERY_BLOCK, zero_bits


@dataclass(frozen=True)
class Estimates:
    """Cost of one call."""

    operations: int
    bytes: int

    def __add__(self, other: Estimates) -> Estimates:
        return Estimates(self.operations + other.operations, self.bytes + other.bytes)

    def times(self, count: int) -> Estimates:
        """Cost of `count` such calls."""
        return Estimates(self.operations * count, self.bytes * count)


def estimate_linear(out_features: int, in_features: int, bits: int, group_size: int, tokens: int = 1) -> Estimates:
    """A linear layer on `tokens` rows: weights once, int8 activations and float32 results once a token."""
    groups = in_features // group_size
    return Estimates(
        operations=2 * tokens * out_features * in_features,
        bytes=weight_bytes(out_features, in_features, bits, group_size)
        + tokens * (in_features + 8 * groups + 4 * out_features),
    )


def weight_bytes(out_features: int, in_features: int, bits: int, group_size: int) -> int:
    """Bytes of a quantized matrix: weights, a 16-bit scale and a zero point for each group."""
    groups = in_features // group_size
    return out_features * (in_features * bits + groups * (16 + zero_bits(bits))) // 8


def estimate_attention(
    n_heads: int, n_kv_heads: int, head_dim: int, position: int, tokens: int = 1, kv_bits: int = 16
) -> Estimates:
    """Attention of `tokens` tokens from `position` on: scores and values of all positions up to each token's own.

    QUERY_BLOCK tokens share one pass over the cache. An int8 cache has a float32 scale for each row.
    """
    seen = sum(range(position + 1, position + tokens + 1))
    row = n_kv_heads * (head_dim * kv_bits // 8 + (4 if kv_bits == 8 else 0))  # of keys or of values
    rows = sum(position + min(first + QUERY_BLOCK, tokens) for first in range(0, tokens, QUERY_BLOCK))
    own = tokens * ((n_heads + 2 * n_kv_heads) * head_dim * 4 + n_heads * head_dim * 4 + 2 * row)
    return Estimates(operations=4 * n_heads * head_dim * seen, bytes=2 * rows * row + own)


def estimate_norm(width: int, group_size: int, tokens: int = 1) -> Estimates:
    """RMSNorm of float32 rows and their quantization: rows and weights in, int8 values, scales and sums out."""
    return Estimates(
        operations=tokens * 7 * width,  # square, add, two multiplications; scale, compare, sum
        bytes=tokens * (4 * width + width + 8 * (width // group_size)) + 4 * width,
    )


def estimate_quantize(width: int, group_size: int, tokens: int = 1) -> Estimates:
    """Quantization of float32 rows."""
    return Estimates(operations=tokens * 3 * width, bytes=tokens * (5 * width + 8 * (width // group_size)))


def estimate_merge(width: int, group_size: int, chunks: int, tokens: int = 1) -> Estimates:
    """The chunks' partial attention folded into one row, and its quantization."""
    fold = Estimates(operations=tokens * 2 * chunks * width, bytes=tokens * 4 * chunks * width)
    return fold + estimate_quantize(width, group_size, tokens)


def estimate_embedding(width: int, bits: int, group_size: int, tokens: int = 1) -> Estimates:
    """Rows of a quantized embedding, as float32."""
    return Estimates(
        operations=tokens * 2 * width, bytes=tokens * (weight_bytes(1, width, bits, group_size) + 4 * width)
    )
