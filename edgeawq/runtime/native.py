"""Load a kernel object with llvmlite's linker. Nothing is compiled, Numba is not imported."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgeawq.errors import KernelError
from edgeawq.runtime.cpu import PROFILES, machine, missing_flags, own_cpu_flags, runnable_isas
from packager.manifest import KernelEntry

Function = Callable[..., None]


@dataclass(frozen=True)
class NativeKernel:
    """An object that was built for this machine, to be used instead of a bundle's own."""

    isa: str
    native: bytes


@dataclass
class NativeObject:
    """A loaded object: its functions live as long as this does. ctypes releases the GIL during a call."""

    _engine: Any = field(repr=False)

    def function(self, symbol: str, arity: int) -> Function:
        """void symbol(int64 × arity); KernelError when the object has no such symbol."""
        address = self._engine.get_function_address(symbol)
        if not address:
            raise KernelError(f"the kernel object has no function {symbol!r}", remedy="pack the checkpoint again")
        prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arity)
        function: Function = prototype(address)
        return function


def load_object(native: bytes) -> NativeObject:
    """Link an ELF object for this machine into the process.

    Raises KernelError when the bytes are no object for this machine.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target_machine = llvm.Target.from_default_triple().create_target_machine()
    # One block of memory for all sections: next to a large file the linker may otherwise find places for code and
    # constants that are more than 2 GiB apart, and gives up.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine, use_lmm=True)
    if not native.startswith(b"\x7fELF"):
        raise KernelError("the kernel file is not an ELF object", remedy="pack the checkpoint again")
    elf_machine = {"x86_64": 62, "aarch64": 183}.get(machine())
    if int.from_bytes(native[18:20], "little") != elf_machine:
        raise KernelError(
            f"the kernel object is not for this machine ({machine()})",
            remedy="pack for this device: `edgeawq pack --device host …`",
        )
    engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(native))
    engine.finalize_object()
    return NativeObject(engine)


def choose_kernel(kernels: tuple[KernelEntry, ...]) -> KernelEntry:
    """The best object of a bundle that this CPU can run; refuses rather than crash on an unknown instruction.

    Raises KernelError that names what the CPU lacks and the profile to use.
    """
    import llvmlite.binding as llvm

    from cpu_kernels.cpu_flags import PREFERENCE, REQUIRED_CPU_FLAGS

    flags = own_cpu_flags()
    features = llvm.get_host_cpu_features()
    lacking = []
    for kernel in sorted(kernels, key=lambda entry: PREFERENCE.index(entry.isa) if entry.isa in PREFERENCE else 99):
        if kernel.isa not in REQUIRED_CPU_FLAGS:
            lacking.append(f"{kernel.isa}: unknown instruction set")
            continue
        if kernel.triple.split("-", 1)[0] != machine():
            lacking.append(f"{kernel.isa}: for {kernel.triple.split('-', 1)[0]}")
            continue
        missing = missing_flags(kernel.isa, flags)
        # LLVM names more features than /proc/cpuinfo has flags; what it does not know here is not held against the CPU.
        missing += tuple(name[1:] for name in kernel.features if name[0] == "+" and features.get(name[1:]) is False)
        if not missing:
            return kernel
        lacking.append(f"{kernel.isa}: this CPU lacks {', '.join(missing)}")
    profile = next((PROFILES[isa] for isa in runnable_isas() if isa in PROFILES), "host")
    raise KernelError(
        f"no kernel of this bundle runs on this {machine()} CPU ({'; '.join(lacking)})",
        remedy=f"pack for this CPU: `edgeawq pack CHECKPOINT --device {profile} -o BUNDLE`; "
        "or --jit builds kernels here, where numba is installed",
    )
