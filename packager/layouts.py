"""Weight layouts as data: where each weight of a linear layer lies in the bytes that a device's kernel loads.

A *tile* is what one vector register of packed fields holds: `tile_rows` output rows, and 4 input columns for each field
of a byte (1-bit fields: 32 columns, 2-bit: 16, 4-bit: 8, 8-bit: 4). Every 32-bit lane of a register belongs to one
output row, so a dot product of four columns needs no sum across lanes. `field_order` lists the tile's values in the
order in which the unpacked registers hold them: field k of byte e is value[k * register_bytes + e], so that a shift by
k fields and one `and` are the whole unpacking. Tiles follow each other along the rows of a *record*, then along the
columns. Weights of 3 bits are 2-bit fields and 1-bit fields: for every 32 columns two tiles of the low two bits, then
one tile of the high bit.

One record, what a thread works on, holds `record_rows` output rows; its scales and zeros lie in front of its weights:

    scales   float16 [groups, record_rows]
    zeros    2, 3 and 4 bit: [groups, record_rows / 2] bytes, row r in nibble r (low nibble first);
             8 bit: [groups, record_rows] bytes
    padding  to a multiple of 64 bytes
    weights  [in_features / columns of a tile, record_rows / tile_rows, register_bytes];
             3 bit: [in_features / 32, 3, record_rows / tile_rows, register_bytes]

Rows that fill up the last record have scale 0. The grid is kept bit for bit: `unpack_linear(pack_linear(x)) == x`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cpu_kernels.abi import zero_bits
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import BundleError
from packager.records import GROUP_MULTIPLE, LAYOUTS, Layout, record_shape

__all__ = [
    "GROUP_MULTIPLE",
    "LAYOUTS",
    "Layout",
    "field_order",
    "pack_gate_up",
    "pack_linear",
    "pack_records",
    "record_shape",
    "unpack_linear",
]

Bytes = npt.NDArray[np.uint8]


def field_order(layout: Layout, bits: int) -> npt.NDArray[np.intp]:
    """Permutation of a tile of `bits`-wide fields (1, 2, 4 or 8): slot → row * columns + column.

    Its length is the number of values in a tile, register_bytes * 8 / bits; slots as in the module's text.
    """
    fields = 8 // bits
    byte = np.arange(layout.register_bytes)
    first = byte // 4 * (4 * fields) + byte % 4
    return np.concatenate([first + 4 * field for field in range(fields)])


def _pad_rows(values: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    missing = rows - values.shape[0]
    return np.pad(values, ((0, missing), (0, 0))) if missing else values


def pack_linear(linear: QuantizedLinear, layout: Layout) -> Bytes:
    """Permute a grid into records: uint8 [records * record_bytes]."""
    return pack_records(linear, layout).reshape(-1)


def pack_records(linear: QuantizedLinear, layout: Layout) -> Bytes:
    """Permute a grid into records: uint8 [records, record_bytes]. Nothing is rounded."""
    out_features, in_features = linear.shape
    shape = record_shape(layout, out_features, in_features, linear.bits, linear.group_size)
    rows = layout.record_rows
    q = _pad_rows(linear.q, shape.records * rows)
    scales = _pad_rows(linear.scales, shape.records * rows)
    zeros = _pad_rows(linear.zeros, shape.records * rows)

    records = np.zeros((shape.records, shape.record_bytes), np.uint8)
    # [records, rows, groups] → [records, groups, rows]
    by_group = np.ascontiguousarray(scales.reshape(shape.records, rows, shape.groups).transpose(0, 2, 1))
    records[:, : shape.zeros_offset] = by_group.view(np.uint8).reshape(shape.records, -1)
    zero_rows = zeros.reshape(shape.records, rows, shape.groups).transpose(0, 2, 1)
    if zero_bits(linear.bits) == 4:
        zero_rows = zero_rows[..., 0::2] | zero_rows[..., 1::2] << 4
    zero_bytes = np.ascontiguousarray(zero_rows).reshape(shape.records, -1)
    records[:, shape.zeros_offset : shape.zeros_offset + zero_bytes.shape[1]] = zero_bytes
    records[:, shape.weights_offset :] = _permute(q, layout, linear.bits, shape.records)
    return records


def _permute(q: npt.NDArray[Any], layout: Layout, bits: int, records: int) -> Bytes:
    """The weights of all records: uint8 [records, bytes]."""
    q = q.astype(np.uint8, copy=False)
    if bits != 3:
        return _pack_fields(q, layout, bits, records).reshape(records, -1)
    # [records, blocks of 32 columns, tiles of 16 or 32 columns, bytes]
    two, one = q & np.uint8(3), q >> np.uint8(2)
    low = _pack_fields(two, layout, 2, records).reshape(records, q.shape[1] // 32, 2, -1)
    high = _pack_fields(one, layout, 1, records).reshape(records, q.shape[1] // 32, 1, -1)
    return np.concatenate([low, high], axis=2).reshape(records, -1)


def _pack_fields(q: Bytes, layout: Layout, bits: int, records: int) -> Bytes:
    """Fields of 1, 2, 4 or 8 bits: uint8 [records, steps, tiles of a record, register_bytes]."""
    columns = 32 // bits
    tiles = q.reshape(records, layout.record_rows // layout.tile_rows, layout.tile_rows, -1, columns)
    # [records, tiles of a record, rows, steps, columns] → [records, steps, tiles of a record, rows * columns]
    flat = tiles.transpose(0, 3, 1, 2, 4).reshape(records, tiles.shape[3], tiles.shape[1], -1)
    ordered = flat[..., field_order(layout, bits)]
    packed = ordered[..., : layout.register_bytes].copy()
    for field in range(1, 8 // bits):
        start = field * layout.register_bytes
        packed |= ordered[..., start : start + layout.register_bytes] << field * bits
    result: Bytes = packed
    return result


def unpack_linear(
    data: Bytes, layout: Layout, out_features: int, in_features: int, bits: int, group_size: int
) -> QuantizedLinear:
    """Read a grid back from its records; the inverse of `pack_linear`."""
    shape = record_shape(layout, out_features, in_features, bits, group_size)
    if data.size != shape.total_bytes:
        raise BundleError(
            f"a layer of {out_features} × {in_features} takes {shape.total_bytes} bytes in layout {layout.name}, "
            f"found {data.size}",
            remedy="pack the checkpoint again",
        )
    records = np.ascontiguousarray(data).reshape(shape.records, shape.record_bytes)
    rows = layout.record_rows
    scales = np.ascontiguousarray(records[:, : shape.zeros_offset]).view(np.float16)
    scales = scales.reshape(shape.records, shape.groups, rows).transpose(0, 2, 1).reshape(-1, shape.groups)
    zero_bytes = records[:, shape.zeros_offset : shape.zeros_offset + shape.groups * rows * zero_bits(bits) // 8]
    zero_rows = zero_bytes.reshape(shape.records, shape.groups, -1)
    if zero_bits(bits) == 4:
        zero_rows = np.stack([zero_rows & 15, zero_rows >> 4], axis=-1).reshape(shape.records, shape.groups, rows)
    zeros = zero_rows.transpose(0, 2, 1).reshape(-1, shape.groups)
    q = _unpermute(records[:, shape.weights_offset :], layout, bits, in_features)
    return QuantizedLinear(
        q=np.ascontiguousarray(q[:out_features]),
        scales=np.ascontiguousarray(scales[:out_features]),
        zeros=np.ascontiguousarray(zeros[:out_features]),
        bits=bits,
        group_size=group_size,
    )


def _unpermute(weights: Bytes, layout: Layout, bits: int, in_features: int) -> Bytes:
    """The inverse of `_permute`: uint8 [records * record_rows, in_features]."""
    if bits != 3:
        return _unpack_fields(weights, layout, bits, in_features)
    planes = weights.reshape(weights.shape[0], in_features // 32, 3, -1)
    q = _unpack_fields(planes[:, :, :2].reshape(weights.shape[0], -1), layout, 2, in_features)
    q |= _unpack_fields(planes[:, :, 2].reshape(weights.shape[0], -1), layout, 1, in_features) << 2
    return q


def _unpack_fields(weights: Bytes, layout: Layout, bits: int, in_features: int) -> Bytes:
    columns = 32 // bits
    tiles = layout.record_rows // layout.tile_rows
    packed = weights.reshape(weights.shape[0], in_features // columns, tiles, layout.register_bytes)
    mask = (1 << bits) - 1
    ordered = np.concatenate([packed >> field * bits & mask for field in range(8 // bits)], axis=-1)
    flat = np.empty_like(ordered)
    flat[..., field_order(layout, bits)] = ordered
    split = flat.reshape(*flat.shape[:3], layout.tile_rows, columns)
    q: Bytes = split.transpose(0, 2, 3, 1, 4).reshape(-1, in_features)
    return q


def pack_gate_up(gate: QuantizedLinear, up: QuantizedLinear, layout: Layout) -> Bytes:
    """Interleave the records of gate and up, so that one thread holds both halves of SiLU(gate) · up.

    Returns uint8 [2 * records * record_bytes]: record 2i belongs to gate, record 2i + 1 to up.
    """
    if gate.shape != up.shape or gate.group_size != up.group_size or gate.bits != up.bits:
        raise BundleError(
            f"gate {gate.shape} and up {up.shape} differ in shape, bits or group size and cannot be interleaved",
            remedy="quantize both with the same settings",
        )
    return np.stack([pack_records(gate, layout), pack_records(up, layout)], axis=1).reshape(-1)
