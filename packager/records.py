"""Sizes of a linear layer's records, without numpy.

Shared by the packager, which writes them, and by the device's runtime, which checks them before a kernel reads a byte.
What a record holds is described in `packager.layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpu_kernels.abi import zero_bits
from edgeawq.errors import BundleError

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
GROUP_MULTIPLE = 32  # columns a kernel takes in one go
KERNEL_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Layout:
    """How one instruction set wants its weights."""

    name: str
    register_bytes: int
    record_rows: int

    @property
    def tile_rows(self) -> int:
        """Output rows in one register: one per 32-bit lane."""
        return self.register_bytes // 4


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("neon", register_bytes=16, record_rows=8),
        Layout("avx2", register_bytes=32, record_rows=8),
        Layout("avx512", register_bytes=64, record_rows=16),
    )
}


@dataclass(frozen=True)
class RecordShape:
    """Byte offsets inside one record, and the number of records of a layer."""

    records: int
    groups: int
    zeros_offset: int
    weights_offset: int
    record_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.records * self.record_bytes


def record_shape(layout: Layout, out_features: int, in_features: int, bits: int, group_size: int) -> RecordShape:
    """Lay out one record of a linear layer.

    Raises BundleError for a width or group size that no kernel takes.
    """
    if bits not in KERNEL_BITS:
        raise BundleError(f"{bits}-bit weights have no layout", remedy="use 2, 3, 4 or 8 bits")
    if group_size % GROUP_MULTIPLE or group_size <= 0 or in_features % group_size or out_features <= 0:
        raise BundleError(
            f"a layer of {out_features} × {in_features} in groups of {group_size} has no layout: the group size must "
            f"be a multiple of {GROUP_MULTIPLE} and divide the input width",
            remedy="quantize with a --group-size that does, such as 32 or 64",
        )
    groups = in_features // group_size
    zeros_offset = groups * layout.record_rows * 2
    zeros_bytes = groups * layout.record_rows * zero_bits(bits) // 8
    weights_offset = -(-(zeros_offset + zeros_bytes) // ALIGNMENT) * ALIGNMENT
    record_bytes = weights_offset + in_features * layout.record_rows * bits // 8
    records = -(-out_features // layout.record_rows)
    return RecordShape(records, groups, zeros_offset, weights_offset, record_bytes)
