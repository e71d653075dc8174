"""An instruction set's instructions as functions that kernels call, and what a kernel for one record looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.core import cgutils

from cpu_kernels.isa.base import Isa
from cpu_kernels.vectors import Vector, define

OPTIONS = {"error_model": "numpy", "forceinline": True}


@dataclass(frozen=True)
class RecordKernels:
    """Kernels of one (bits, activations) pair.

    dot1(record, zeros, weights, groups, group_size, columns, x) → f32 vector;
    dot4(…, x, x_stride) → the same for four activation rows.
    """

    dot1: Callable[..., Any]
    dot4: Callable[..., Any]


class IsaOps:
    """An instruction set's instructions as functions that Numba code can call, and the vector types they work on."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.lanes = isa.lanes
        self.f32 = Vector("f32", isa.lanes)
        self.f16 = Vector("f16", isa.lanes)
        self.i32 = Vector("i32", isa.lanes)
        self.i8 = Vector("i8", isa.lanes)
        self.bytes = Vector("i8", 4 * isa.lanes)
        self.chain = Vector(isa.chain, isa.chain_lanes)
        self.total = Vector("i32", isa.total_lanes)

        def emit_spread8(builder: Any, address: Any) -> Any:
            return cgutils.pack_array(builder, isa.emit_spread8(builder, address, self.bytes.llvm))

        pair = types.UniTuple(self.bytes, 2)
        # spread8(address): activation bytes 0 … 3, and 4 … 7, in every lane
        self.spread8 = define("spread8", 1, lambda _: (pair(types.int64), emit_spread8))
        self.multiply_nibbles = define(
            "multiply_nibbles",
            3,
            lambda *_: (self.chain(self.chain, self.bytes, self.bytes), isa.emit_multiply_nibbles),
        )
        self.widen = define("widen", 2, lambda *_: (self.total(self.total, self.chain), isa.emit_widen))
        self.fold = define("fold", 1, lambda _: (self.i32(self.total), isa.emit_fold))
        self.multiply_bytes = define(
            "multiply_bytes",
            5,
            lambda *_: (self.total(self.total, *[self.bytes] * 4), isa.emit_multiply_bytes),
        )
        self.pair = Vector("i8", 16)
        # multiply_pairs(sums, w, x): None where four activation rows are multiplied one by one
        self.multiply_pairs: Any = None
        emit_pairs = isa.emit_multiply_pairs
        if emit_pairs is not None:
            self.multiply_pairs = define(
                "multiply_pairs", 3, lambda *_: (self.i32(self.i32, self.bytes, self.pair), emit_pairs)
            )
        self.in_order = define("in_order", 1, lambda _: (self.chain(self.chain), isa.emit_in_order))
        self.pause = define("pause", 0, lambda: (types.void(), isa.emit_pause))
