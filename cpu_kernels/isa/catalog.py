"""Every instruction set there is, by name. A new one is a new file and one line here."""

from __future__ import annotations

from cpu_kernels.isa.avx2 import AVX2, AVXVNNI
from cpu_kernels.isa.avx512vnni import AVX512VNNI
from cpu_kernels.isa.base import Isa, portable
from cpu_kernels.isa.neon import NEON, NEON_DOTPROD
from cpu_kernels.isa.neon_i8mm import NEON_I8MM
from edgeawq.errors import KernelError

ISAS = {isa.name: isa for isa in (AVX2, AVXVNNI, AVX512VNNI, NEON, NEON_DOTPROD, NEON_I8MM)}


def find_isa(name: str, machine: str) -> Isa:
    """Look an instruction set up; "NAME_portable" is its meaning in plain LLVM for `machine`.

    Raises KernelError for an unknown name or one of another machine.
    """
    base = name.removesuffix("_portable")
    if base not in ISAS:
        raise KernelError(f"unknown instruction set {name!r}", remedy=f"known: {', '.join(ISAS)}")
    if base != name:
        return portable(ISAS[base], machine)
    if ISAS[base].machine != machine:
        raise KernelError(
            f"instruction set {name!r} belongs to {ISAS[base].machine}, the target is {machine}",
            remedy="choose a profile whose triple and isa fit together",
        )
    return ISAS[base]
