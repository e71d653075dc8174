"""Round-to-nearest on AWQ's asymmetric grid, and back: the numpy reference of every packed weight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import QuantizationError

MIN_BITS = 2
MAX_BITS = 8
# Rows are worked on in slices of about this many weights, so that a head of 128k rows needs no second copy of itself.
SLICE_ELEMENTS = 1 << 22
SMALLEST_SUBNORMAL_F16 = 2.0**-24
SMALLEST_NORMAL_F16 = 2.0**-14
LARGEST_F16 = 65504.0


def quantize_rtn(weight: npt.ArrayLike, bits: int, group_size: int, *, is_symmetric: bool = False) -> QuantizedLinear:
    """Round a weight [out_features, in_features] to the nearest points of a uniform grid, asymmetric unless said.

    Per group of `group_size` inputs: scale = (max - min) / (2**bits - 1), zero = round(-min / scale),
    q = round(w / scale) + zero, all clamped to 0 … 2**bits - 1. The range always includes 0, because an unsigned
    zero point cannot express a group that lies wholly on one side of it. Rounding uses the float16 value of the
    scale, the one that is stored. A group of zeros gets q = zero and an ordinary scale. A symmetric grid spans
    ± the largest weight, and its zero is 2**(bits - 1) everywhere.
    Raises QuantizationError for NaN, infinity, a scale beyond float16, or a width that the group does not divide.
    """
    matrix = np.asarray(weight)
    check_grid(matrix.shape, bits, group_size)
    out_features, in_features = matrix.shape
    n_groups = in_features // group_size
    q = np.empty((out_features, in_features), np.uint8)  # [out, in]
    scales = np.empty((out_features, n_groups), np.float16)  # [out, groups]
    zeros = np.empty((out_features, n_groups), np.uint8)  # [out, groups]
    for rows in slice_rows(out_features, in_features):
        groups = matrix[rows].astype(np.float32).reshape(-1, n_groups, group_size)
        if not np.isfinite(groups).all():
            row = rows.start + int(np.argwhere(~np.isfinite(groups))[0][0])
            raise QuantizationError(
                f"the weight [{out_features}, {in_features}] holds NaN or infinity (first in row {row})",
                remedy="the checkpoint is damaged or was saved after a diverged training step; get it again",
            )
        scales[rows], zeros[rows] = choose_grid(groups, bits, is_symmetric=is_symmetric)
        q[rows] = round_to_grid(groups, scales[rows], zeros[rows], bits)
    return QuantizedLinear(q=q, scales=scales, zeros=zeros, bits=bits, group_size=group_size)


def choose_grid(
    groups: npt.NDArray[np.float32], bits: int, *, is_symmetric: bool = False
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """The scale and zero of each group from its smallest and largest weight.

    `groups` is [rows, n_groups, group_size] and finite; both results are [rows, n_groups].
    """
    top = 2**bits - 1
    low = np.minimum(groups.min(axis=-1), 0.0).astype(np.float64)  # [rows, groups]
    high = np.maximum(groups.max(axis=-1), 0.0).astype(np.float64)  # [rows, groups]
    if is_symmetric:
        high = np.maximum(high, -low)
        low = -high
    wanted = (high - low) / top
    if wanted.size and wanted.max() > LARGEST_F16:
        raise QuantizationError(
            f"a group spans {float((high - low).max()):.4g}; with {bits} bits float16 scales reach at most "
            f"{LARGEST_F16 * top:.4g}",
            remedy="the weights are not those of a working model; check the checkpoint",
        )
    scales = np.maximum(wanted, SMALLEST_SUBNORMAL_F16).astype(np.float16)
    # A subnormal has few digits: rounded down it would no longer span the group, so it goes up instead.
    short = (scales < SMALLEST_NORMAL_F16) & (scales.astype(np.float64) < wanted)
    scales = np.where(short, np.nextafter(scales, np.float16(1.0)), scales)
    scales = np.where(wanted == 0.0, np.float16(SMALLEST_NORMAL_F16), scales)
    if is_symmetric:
        return scales, np.full(scales.shape, 1 << (bits - 1), np.uint8)
    zeros = np.clip(np.rint(-low / scales.astype(np.float64)), 0, top).astype(np.uint8)
    return scales, zeros


def round_to_grid(
    groups: npt.NDArray[np.float32], scales: npt.NDArray[np.float16], zeros: npt.NDArray[np.uint8], bits: int
) -> npt.NDArray[np.uint8]:
    """The grid points nearest to `groups` [rows, n_groups, group_size] as [rows, n_groups * group_size]."""
    steps = groups / scales.astype(np.float32)[:, :, None]
    np.rint(steps, out=steps)
    steps += zeros[:, :, None]
    np.clip(steps, 0, 2**bits - 1, out=steps)
    return steps.astype(np.uint8).reshape(groups.shape[0], -1)


def dequantize(linear: QuantizedLinear) -> npt.NDArray[np.float32]:
    """The weight [out_features, in_features] that the grid stands for: (q - zero) * scale in float32."""
    out_features, in_features = linear.shape
    check_grid((out_features, in_features), linear.bits, linear.group_size)
    n_groups = in_features // linear.group_size
    weight = np.empty((out_features, in_features), np.float32)  # [out, in]
    for rows in slice_rows(out_features, in_features):
        groups = linear.q[rows].astype(np.float32).reshape(-1, n_groups, linear.group_size)
        groups -= linear.zeros[rows][:, :, None]
        groups *= linear.scales[rows].astype(np.float32)[:, :, None]
        weight[rows] = groups.reshape(-1, in_features)
    return weight


def check_grid(shape: tuple[int, ...], bits: int, group_size: int) -> None:
    """Raise QuantizationError unless a weight of this shape can lie on such a grid."""
    if len(shape) != 2 or 0 in shape:
        raise QuantizationError(f"a weight of shape {list(shape)} cannot be quantized; a matrix [out, in] is needed")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise QuantizationError(f"{bits} bits per weight are not possible", remedy=f"choose {MIN_BITS} … {MAX_BITS}")
    if group_size < 1 or shape[1] % group_size:
        raise QuantizationError(
            f"a group size of {group_size} does not divide the {shape[1]} inputs of a weight {list(shape)}",
            remedy="choose a group size that divides the width of every quantized layer",
        )


def slice_rows(out_features: int, in_features: int) -> Iterator[slice]:
    """Slices of rows that hold about SLICE_ELEMENTS weights each."""
    step = max(1, SLICE_ELEMENTS // max(1, in_features))
    for start in range(0, out_features, step):
        yield slice(start, min(start + step, out_features))
