"""GPTQ's packing, version 2: a stream of 2-, 3-, 4- or 8-bit values through 32-bit words.

Weights are stored as [in_features * bits / 32, out_features], packed along the inputs; zeros as [groups, out_features *
bits / 32], packed along the outputs; scales as float16 [groups, out_features]; g_idx names the group of every input.
Value k of a run of 32 lies in bits k * bits … of its `bits` words, lowest first, so 3-bit values cross word borders and
none is wasted. Version 2 stores a zero as it is; version 1 stored zero - 1, which loses the zero 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import CheckpointError, UnsupportedModelError

GPTQ_BITS = (2, 3, 4, 8)
RUN = 32  # values that fill whole words, whatever their bits
WORD_BITS = 32
GPTQ_DTYPES = {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}


def pack_stream(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """Pack values 0 … 2**bits - 1 of shape [n, columns] into words [n * bits / 32, columns]; n is a multiple of 32.

    Raises CheckpointError for a count that does not fill whole words, or values beyond the bits.
    """
    count, columns = values.shape
    if count % RUN:
        raise CheckpointError(f"GPTQ's format packs values by {RUN}; a layer with {count} does not fit")
    if values.size and int(values.max()) >= 1 << bits:
        raise CheckpointError(f"a {bits}-bit layer holds the value {int(values.max())}")
    runs = values.reshape(count // RUN, RUN, columns)
    words = np.zeros((count // RUN, bits, columns), np.uint32)
    for k in range(RUN):
        word, shift = divmod(k * bits, WORD_BITS)
        value = runs[:, k].astype(np.uint32)
        words[:, word] |= value << np.uint32(shift)
        if shift + bits > WORD_BITS:
            words[:, word + 1] |= value >> np.uint32(WORD_BITS - shift)
    return words.reshape(-1, columns).view(np.int32)


def unpack_stream(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """The values [n, columns] of words [n * bits / 32, columns]; the inverse of `pack_stream`."""
    columns = words.shape[1]
    runs = np.ascontiguousarray(words).view(np.uint32).reshape(-1, bits, columns)
    values = np.empty((len(runs), RUN, columns), np.uint8)
    for k in range(RUN):
        word, shift = divmod(k * bits, WORD_BITS)
        value = runs[:, word] >> np.uint32(shift)
        if shift + bits > WORD_BITS:
            value = value | runs[:, word + 1] << np.uint32(WORD_BITS - shift)
        values[:, k] = value & np.uint32((1 << bits) - 1)
    return values.reshape(-1, columns)


def pack_linear_gptq(linear: QuantizedLinear) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors that GPTQ's tools store for a linear layer, by suffix."""
    if linear.bits not in GPTQ_BITS:
        raise CheckpointError(
            f"GPTQ's format holds weights of {', '.join(map(str, GPTQ_BITS))} bits, not of {linear.bits}",
            remedy="quantize with one of these",
        )
    return {
        "qweight": pack_stream(linear.q.T, linear.bits),
        # Zeros are packed along the outputs: their words lie side by side in a row.
        "qzeros": np.ascontiguousarray(pack_stream(linear.zeros, linear.bits).T),
        "scales": np.ascontiguousarray(linear.scales.T),
        "g_idx": (np.arange(linear.shape[1]) // linear.group_size).astype(np.int32),
    }


def unpack_linear_gptq(
    qweight: npt.NDArray[np.int32],
    qzeros: npt.NDArray[np.int32],
    scales: npt.NDArray[np.float16],
    bits: int,
    group_size: int,
) -> QuantizedLinear:
    """The grid behind GPTQ's tensors (shapes as in `pack_linear_gptq`, already checked)."""
    return QuantizedLinear(
        q=np.ascontiguousarray(unpack_stream(qweight, bits).T),
        scales=np.ascontiguousarray(scales.T),
        zeros=np.ascontiguousarray(unpack_stream(qzeros.T, bits)),
        bits=bits,
        group_size=group_size,
    )


def read_grid_shape(
    module: str, shape: tuple[int, int], qweight: tuple[int, ...], scales: tuple[int, ...]
) -> tuple[int, int]:
    """(bits, group size) of a layer [out_features, in_features], from the shapes of its stored tensors.

    The tensors say it for every layer, whatever patterns the configuration uses for layers that differ. Raises
    CheckpointError where no grid has these shapes.
    """
    in_features = shape[1]
    if len(qweight) == len(scales) == 2 and scales[0] > 0 and in_features % scales[0] == 0:
        bits, rest = divmod(qweight[0] * WORD_BITS, in_features)
        if rest == 0 and bits in GPTQ_BITS:
            return bits, in_features // scales[0]
    raise CheckpointError(
        f"{module} [{shape[0]}, {in_features}] is stored as qweight {list(qweight)} with scales {list(scales)}, which "
        f"is no grid of {', '.join(map(str, GPTQ_BITS))} bits",
        remedy="copy or download the checkpoint again",
    )


def list_gptq_shapes(module: str, shape: tuple[int, int], bits: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of GPTQ's tensors for a layer [out_features, in_features]; CheckpointError where it does not fit."""
    out_features, in_features = shape
    if in_features % group_size or in_features % RUN or out_features % RUN:
        raise CheckpointError(
            f"{module} [{out_features}, {in_features}] cannot be packed in groups of {group_size} inputs and runs of "
            f"{RUN} values"
        )
    groups = in_features // group_size
    return {
        f"{module}.qweight": (in_features * bits // WORD_BITS, out_features),
        f"{module}.qzeros": (groups, out_features * bits // WORD_BITS),
        f"{module}.scales": (groups, out_features),
        f"{module}.g_idx": (in_features,),
    }


def check_group_order(module: str, g_idx: npt.NDArray[np.int32], group_size: int) -> None:
    """Raise UnsupportedModelError where the inputs of a group do not lie side by side."""
    if not np.array_equal(g_idx, np.arange(len(g_idx)) // group_size):
        raise UnsupportedModelError(
            f"{module} was quantized with act-order and groups that follow it; no kernel reads such groups",
            remedy="quantize with static groups, as edgeawq does, or without act-order",
        )
