"""The CPU's own clock for intervals: steady, the same on all cores, and readable without a system call."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from cpu_kernels.vectors import call, define

_I64 = ir.IntType(64)


def _emit_x86(builder: ir.IRBuilder) -> Any:
    return call(builder, "llvm.readcyclecounter", _I64)  # rdtsc


def _emit_arm(builder: ir.IRBuilder) -> Any:
    # Not llvm.readcyclecounter: that is the performance counter, which Linux keeps to itself.
    function_type = ir.FunctionType(_I64, [ir.MetaDataType()])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.read_volatile_register.i64")
    name = builder.module.add_metadata([ir.MetaDataString(builder.module, "cntvct_el0")])
    return builder.call(function, [name])


def make_counter(machine: str) -> Any:
    """read_counter() → int64 ticks of unknown length, for a machine."""
    emit = {"x86_64": _emit_x86, "aarch64": _emit_arm}[machine]
    return define("read_counter", 0, lambda: (types.int64(), emit))
