"""AutoAWQ's `gemm` packing: eight 4-bit values of neighbouring output columns in one 32-bit word.

Nibble i (counted from the lowest bit) of a word holds column COLUMN_OF_NIBBLE[i] of its eight. Weights are stored as
[in_features, out_features / 8], zeros as [groups, out_features / 8]: packing runs along the outputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import CheckpointError

BITS = 4
VALUES_PER_WORD = 8
COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_gemm(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Pack values 0 … 15 of shape [rows, columns] into words [rows, columns / 8].

    Raises CheckpointError where the columns are not a multiple of 8 or a value exceeds 4 bits.
    """
    rows, columns = values.shape
    if columns % VALUES_PER_WORD:
        raise CheckpointError(
            f"AutoAWQ's gemm format packs outputs by {VALUES_PER_WORD}; a layer with {columns} outputs does not fit"
        )
    if values.size and int(values.max()) >= 1 << BITS:
        raise CheckpointError(f"AutoAWQ's gemm format holds {BITS}-bit values; found {int(values.max())}")
    # A layer is held with outputs first: working along its own rows and turning the words is 4 times as fast.
    by_column = values.T.reshape(columns // VALUES_PER_WORD, VALUES_PER_WORD, rows)
    words = np.zeros((columns // VALUES_PER_WORD, rows), np.uint32)
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        words |= by_column[:, column].astype(np.uint32) << np.uint32(BITS * nibble)
    return np.ascontiguousarray(words.T).view(np.int32)


def unpack_gemm(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Unpack words [rows, n] into values 0 … 15 of shape [rows, 8 * n], whose transpose is contiguous."""
    rows, n_words = words.shape
    unsigned = np.ascontiguousarray(words.T).view(np.uint32)  # [n, rows]
    by_column = np.empty((n_words, VALUES_PER_WORD, rows), np.uint8)
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        by_column[:, column] = (unsigned >> np.uint32(BITS * nibble)) & np.uint32(0xF)
    values: npt.NDArray[np.uint8] = by_column.reshape(n_words * VALUES_PER_WORD, rows).T
    return values


def pack_linear_gemm(linear: QuantizedLinear) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors that AutoAWQ stores for a linear layer, by suffix.

    qweight int32 [in, out / 8], qzeros int32 [in / group_size, out / 8], scales float16 [in / group_size, out].
    """
    if linear.bits != BITS:
        raise CheckpointError(
            f"AutoAWQ's gemm format holds {BITS}-bit weights, not {linear.bits}-bit ones",
            remedy=f"quantize with {BITS} bits",
        )
    return {
        "qweight": pack_gemm(linear.q.T),
        "qzeros": pack_gemm(linear.zeros.T),
        "scales": np.ascontiguousarray(linear.scales.T),
    }


def unpack_linear_gemm(
    qweight: npt.NDArray[np.int32], qzeros: npt.NDArray[np.int32], scales: npt.NDArray[np.float16], group_size: int
) -> QuantizedLinear:
    """The grid behind AutoAWQ's tensors (shapes as in `pack_linear_gemm`, already checked)."""
    return QuantizedLinear(
        q=np.ascontiguousarray(unpack_gemm(qweight).T),
        scales=np.ascontiguousarray(scales.T),
        zeros=np.ascontiguousarray(unpack_gemm(qzeros).T),
        bits=BITS,
        group_size=group_size,
    )
