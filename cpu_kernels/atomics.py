"""Atomic words, a pause, and Linux's futex: what the threads of one token agree with."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from cpu_kernels.vectors import define

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


def _pointer(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, _I32.as_pointer())


def _emit_load(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.load_atomic(_pointer(builder, address), "seq_cst", 4)


def _emit_store(builder: ir.IRBuilder, address: Any, value: Any) -> None:
    builder.store_atomic(value, _pointer(builder, address), "seq_cst", 4)


def _emit_add(builder: ir.IRBuilder, address: Any, value: Any) -> Any:
    return builder.atomic_rmw("add", _pointer(builder, address), value, "seq_cst")


# Sequentially consistent 32-bit operations on a byte address.
atomic_load = define("atomic_load", 1, lambda _: (types.int32(types.int64), _emit_load))
atomic_store = define("atomic_store", 2, lambda _a, _v: (types.void(types.int64, types.int32), _emit_store))
# atomic_add(address, value) → the value before
atomic_add = define("atomic_add", 2, lambda _a, _v: (types.int32(types.int64, types.int32), _emit_add))

_FUTEX_WAIT_PRIVATE = 128
_FUTEX_WAKE_PRIVATE = 129
_SYSTEM_CALL = {"x86_64": 202, "aarch64": 98}


def make_futex(machine: str) -> tuple[Any, Any]:
    """futex_wait(address, expected) and futex_wake(address, count) for a machine, through libc's `syscall`.

    A wait returns at once when the word is no longer `expected`, so no wake-up is lost.
    """
    number = _SYSTEM_CALL[machine]

    def emit(operation: int) -> Any:
        def generate(builder: ir.IRBuilder, address: Any, value: Any) -> None:
            function_type = ir.FunctionType(_I64, [_I64], var_arg=True)
            function = cgutils.get_or_insert_function(builder.module, function_type, "syscall")
            wide = builder.sext(value, _I64)
            builder.call(function, [_I64(number), address, _I64(operation), wide, _I64(0), _I64(0), _I64(0)])

        return generate

    def typer(operation: int) -> Any:
        return lambda _a, _v: (types.void(types.int64, types.int32), emit(operation))

    return (
        define("futex_wait", 2, typer(_FUTEX_WAIT_PRIVATE)),
        define("futex_wake", 2, typer(_FUTEX_WAKE_PRIVATE)),
    )
