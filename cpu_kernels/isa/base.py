"""What a kernel needs to know of an instruction set: a few instructions, each a template and an executable meaning.

`emit_*` write the target's own instructions; `mean_*` say the same in target-independent LLVM. `portable(isa)` swaps
the first for the second, so that the kernel of any instruction set, with its own layout and lane count, also runs on
a CPU that does not have it: slowly, to be compared with the reference.

An instruction set may say how four activation rows are multiplied (`multiply_pairs`). Where it does not, they are
multiplied as one row is, four times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llvmlite import ir

from cpu_kernels.vectors import call, splat_value

Emit = Callable[..., Any]

_I32 = ir.IntType(32)


def same(_builder: ir.IRBuilder, value: Any) -> Any:
    """The value as it is: for an instruction set that needs nothing done, as to fold sums of which each row has one."""
    return value


@dataclass(frozen=True)
class Isa:
    """One instruction set. w: unsigned weight bytes, x: signed activation bytes, 4 of them per 32-bit lane.

    chain: elements of the running sum of a chain ("i16": summed up after 32 columns; "i32": never overflows).
    total_lanes: 32-bit sums of a group: as many as `lanes`, or twice, two neighbours for each row.
    tokens_at_once: activation rows whose chains and sums the registers hold, 4 or 2.
    chain_from_total: with four rows at once, a chain goes on from the group's sum instead of being added to it. That
    saves an addition, but the next chain waits for the last: for an instruction with a short latency.
    byte_offset: what the 8-bit kernel subtracts from weight and zero point to make the weight signed (0 or 128).
    cpu_flags: names in /proc/cpuinfo that a CPU must show.
    """

    name: str
    machine: str
    lanes: int  # 32-bit lanes of a record's registers = output rows of a record
    layout: str
    cpu_flags: tuple[str, ...]
    chain: str
    chain_lanes: int
    total_lanes: int
    tokens_at_once: int
    chain_from_total: bool
    byte_offset: int
    emit_spread8: Emit  # (builder, address, kind of x) → x of columns 0 … 3, x of columns 4 … 7: bytes in every lane
    emit_multiply_nibbles: Emit  # (builder, chain, w in 0 … 15, x) → chain
    emit_widen: Emit  # (builder, sums i32, chain) → sums i32
    emit_fold: Emit  # (builder, sums i32 [total_lanes]) → i32 [lanes]
    emit_multiply_bytes: Emit  # (builder, sums, w, w', x, x'), 8 columns, w in 0 … 255 → sums + (w - byte_offset) * x
    emit_pause: Emit  # (builder) → None
    mean_multiply_nibbles: Emit
    mean_widen: Emit
    mean_fold: Emit
    mean_multiply_bytes: Emit
    emit_in_order: Emit = (
        same  # (builder, chain) → the same, which LLVM may not take apart to add it up in another order
    )
    # (builder, sums i32 [lanes], w of lanes / 2 rows, x of two rows) → sums; 8 columns, w in 0 … 255. Four lanes are
    # two rows of w by two of x: w0·x0, w0·x1, w1·x0, w1·x1. With it, byte_offset is 0.
    emit_multiply_pairs: Emit | None = None
    mean_multiply_pairs: Emit | None = None


def portable(isa: Isa, machine: str) -> Isa:
    """The same kernel text, lane count and layout, in instructions that every CPU of `machine` has."""
    return replace(
        isa,
        name=f"{isa.name}_portable",
        machine=machine,
        cpu_flags=(),
        emit_spread8=spread8,
        emit_multiply_nibbles=isa.mean_multiply_nibbles,
        emit_widen=isa.mean_widen,
        emit_fold=isa.mean_fold,
        emit_multiply_bytes=isa.mean_multiply_bytes,
        emit_pause=pause_nothing,
        emit_in_order=same,
        emit_multiply_pairs=isa.mean_multiply_pairs,
    )


def spread8(builder: ir.IRBuilder, address: Any, kind: ir.VectorType) -> tuple[Any, Any]:
    """Two loads, each broadcast: one instruction on x86."""
    words = vector(32, kind.count // 4)
    halves = []
    for offset in (0, 4):
        pointer = builder.inttoptr(builder.add(address, address.type(offset)), _I32.as_pointer())
        word = builder.load(pointer, align=1)
        halves.append(builder.bitcast(splat_value(builder, words, word), kind))
    return halves[0], halves[1]


def twice(multiply: Emit) -> Emit:
    """`multiply_bytes` for 8 columns from an instruction for 4."""

    def emit(builder: ir.IRBuilder, total: Any, w0: Any, w1: Any, x0: Any, x1: Any) -> Any:
        return multiply(builder, multiply(builder, total, w0, x0), w1, x1)

    return emit


def pause_nothing(builder: ir.IRBuilder) -> None:
    """No instruction at all."""


def pause_x86(builder: ir.IRBuilder) -> None:
    """`pause`: tells the core that this is a spin loop."""
    call(builder, "llvm.x86.sse2.pause", ir.VoidType())


def pause_arm(builder: ir.IRBuilder) -> None:
    """`yield`."""
    call(builder, "llvm.aarch64.hint", ir.VoidType(), _I32(1))


def vector(element: int, lanes: int) -> ir.VectorType:
    """LLVM vector of integers of `element` bits."""
    return ir.VectorType(ir.IntType(element), lanes)


def splat_constant(kind: ir.VectorType, value: int) -> ir.Constant:
    """The same number in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def take(builder: ir.IRBuilder, value: Any, lanes: list[int]) -> Any:
    """The listed lanes of a vector, as a shorter vector."""
    mask = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def join(builder: ir.IRBuilder, low: Any, high: Any) -> Any:
    """Two vectors, one after the other."""
    count = low.type.count * 2
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, count), list(range(count))))


def sum_neighbours(builder: ir.IRBuilder, value: Any, wide: ir.VectorType, width: int) -> Any:
    """Sign-extend and add `width` neighbouring lanes: [n * width] → wide [n]."""
    total = None
    for offset in range(width):
        lanes = take(builder, value, list(range(offset, value.type.count, width)))
        extended = builder.sext(lanes, wide) if lanes.type.element.width < wide.element.width else lanes
        total = extended if total is None else builder.add(total, extended)
    return total


def mean_dot(builder: ir.IRBuilder, total: Any, w: Any, x: Any, *, offset: int) -> Any:
    """total i32 [n] + the sum over each lane's 4 bytes of (w unsigned - offset) * (x signed)."""
    wide = vector(32, w.type.count)
    weights = builder.sub(builder.zext(w, wide), splat_constant(wide, offset))
    products = builder.mul(weights, builder.sext(x, wide))
    return builder.add(total, sum_neighbours(builder, products, total.type, 4))


def mean_pairs(builder: ir.IRBuilder, total: Any, w: Any, x: Any) -> Any:
    """total i32 [n] + the products of each two rows of w (unsigned, 8 columns) with the two rows of x (signed)."""
    lanes = total.type.count
    wide = vector(32, 8 * lanes)
    columns = range(8)
    weights = [8 * (lane // 2) + column for lane in range(lanes) for column in columns]
    activations = [8 * (lane % 2) + column for lane in range(lanes) for column in columns]
    left = builder.zext(take(builder, w, weights), wide)
    right = builder.sext(take(builder, x, activations), wide)
    return builder.add(total, sum_neighbours(builder, builder.mul(left, right), total.type, 8))
