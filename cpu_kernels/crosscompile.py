"""Compile Numba functions for another machine into one ELF object. Runs in a process of its own (`cpu_kernels.build`).

Numba's ahead-of-time code generator is aimed at the device's triple, CPU and features, and never makes anything
executable here. Numba's calling convention (status code, pointer to the result) is hidden behind plain C functions
`void name(int64 …)`; everything else becomes internal, so the object needs no symbol of Numba or Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import codegen, types
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from device_profiles.target import Target
from edgeawq.errors import KernelError

# What an object may ask of the C library on the device.
ALLOWED_SYMBOLS = frozenset({"memcpy", "memset", "memmove", "syscall"})


@dataclass(frozen=True)
class Export:
    """A function of the object: void symbol(int64 × arity)."""

    symbol: str
    function: Callable[..., Any]
    arity: int


@dataclass(frozen=True)
class Compiled:
    """An ELF relocatable object and the assembly it came from."""

    native: bytes
    assembly: str


class _DeviceLibrary(codegen.AOTCodeLibrary):  # type: ignore[misc]
    """Code of one function, or (with `exports`) of the whole object.

    Numba would optimize every function again with each of its callers; here the linked whole is optimized, once.
    Functions are inlined where they ask for it (`forceinline`) and nowhere else: a large kernel exists once.
    """

    exports: frozenset[str] = frozenset()

    def add_ir_module(self, ir_module: Any) -> None:
        for function in ir_module.functions:
            if not function.is_declaration and "alwaysinline" not in function.attributes:
                function.attributes.add("noinline")
        super().add_ir_module(ir_module)

    def _optimize_final_module(self) -> None:
        if not self.exports:
            return
        for function in self._final_module.functions:
            if not function.is_declaration and function.name not in self.exports:
                function.linkage = "internal"
        super()._optimize_final_module()


def _make_codegen(target: Target) -> Any:
    class DeviceCodegen(codegen.AOTCPUCodegen):  # type: ignore[misc]
        _library_class = _DeviceLibrary

        def _init(self, llvm_module: Any) -> None:
            self._tm = llvm.Target.from_triple(target.triple).create_target_machine(
                opt=3, cpu=target.cpu, features=target.feature_string, reloc="pic", codemodel="default"
            )
            self._tm_features = target.feature_string
            self._target_data = self._tm.target_data
            self._data_layout = str(self._tm.target_data)
            self._engine = None
            self._loopvect, self._opt_level = True, 3

        def _create_empty_module(self, name: str) -> Any:
            module = super()._create_empty_module(name)
            module.triple = target.triple
            return module

        def _get_host_cpu_name(self) -> str:
            return target.cpu

        def _get_host_cpu_features(self) -> str:
            return target.feature_string

    return DeviceCodegen("edgeawq", target.cpu)


def _placeholder(context: Any, library: Any, fndesc: Any, env: Any) -> Any:
    """What Numba takes for the compiled function: a builtin that is never called.

    It must be a different one for every function: Numba finds a callee by this object and the argument types.
    """
    return [fndesc.mangled_name].append


def _wrapper_module(library: Any, compiled: Sequence[tuple[Export, Any]]) -> Any:
    """`void symbol(int64 …)` for each export, calling Numba's function and ignoring its status (it is always 0)."""
    module = library.create_ir_module("exports")
    i64, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    for export, result in compiled:
        arguments = [i64] * export.arity
        inner = ir.Function(
            module,
            ir.FunctionType(ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), *arguments]),
            result.fndesc.mangled_name,
        )
        outer = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), export.symbol)
        builder = ir.IRBuilder(outer.append_basic_block())
        value = builder.alloca(pointer)
        error = builder.alloca(pointer)
        builder.call(inner, [value, error, *outer.args])
        builder.ret_void()
    return module


@global_compiler_lock  # type: ignore[untyped-decorator,unused-ignore]
def compile_object(target: Target, exports: Sequence[Export]) -> Compiled:
    """Compile and link `exports` for `target`. Call it once in a process: Numba's global context is changed.

    Raises KernelError when the object would need a symbol that a device does not have.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    context = cpu_target.target_context
    context._internal_codegen = _make_codegen(target)
    type(context).get_executable = _placeholder
    flags = Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    compiled = []
    library = context.codegen().create_library("kernels")
    for export in exports:
        result = compile_extra(
            cpu_target.typing_context, context, export.function, (types.int64,) * export.arity, types.void, flags, {}
        )
        library.add_linking_library(result.library)
        compiled.append((export, result))
    library.exports = frozenset(export.symbol for export in exports)
    library.add_ir_module(_wrapper_module(library, compiled))
    library.finalize()
    missing = {
        function.name
        for function in library._final_module.functions
        if function.is_declaration and not function.name.startswith("llvm.")
    } - ALLOWED_SYMBOLS
    assembly = context.codegen()._tm.emit_assembly(library._final_module)
    native = library.emit_native_object()
    missing = {name for name in missing if re.search(rf"\b{re.escape(name)}\b", assembly)}
    if missing:
        raise KernelError(
            f"the kernels for {target} need {', '.join(sorted(missing))}, which a device does not have",
            remedy="use only the operations of cpu_kernels.vectors in kernels",
        )
    return Compiled(native, assembly)
