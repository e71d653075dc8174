"""`--jit`: kernels for a CPU that a bundle brings none for, built here with Numba and kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeawq.errors import KernelError, MissingExtraError

if TYPE_CHECKING:
    from device_profiles.target import Target
    from edgeawq.runtime.native import NativeKernel
    from packager.manifest import Manifest


def build_missing_kernel(bundle: Path) -> NativeKernel | None:
    """Kernels for this machine and the bundle's layout; None when the bundle has some that run here.

    Raises MissingExtraError without numba, KernelError when nothing can be built.
    """
    from edgeawq.runtime.native import choose_kernel
    from packager.manifest_reader import read_manifest

    manifest = read_manifest(bundle)
    try:
        choose_kernel(manifest.kernels)
        return None
    except KernelError:
        return _build(manifest)


def choose_isa(layout: str, flags: frozenset[str], machine: str) -> str:
    """The best instruction set for weights in `layout`; its meaning in plain LLVM where the CPU has none of them."""
    from cpu_kernels.cpu_flags import PREFERENCE
    from cpu_kernels.isa.catalog import ISAS

    fitting = [name for name in PREFERENCE if ISAS[name].layout == layout]
    if not fitting:
        raise KernelError(f"no instruction set has the layout {layout!r}", remedy="pack the checkpoint again")
    runnable = (name for name in fitting if ISAS[name].machine == machine and flags.issuperset(ISAS[name].cpu_flags))
    return next(runnable, f"{fitting[-1]}_portable")


def _build(manifest: Manifest) -> NativeKernel:
    try:
        import numba as _  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("numba", "host") from None
    import click

    from cpu_kernels.build import build_object
    from edgeawq.runtime.cpu import machine, own_cpu_flags
    from edgeawq.runtime.native import NativeKernel

    layout = next(tensor.layout for tensor in manifest.tensors if tensor.kind == "linear")
    isa = choose_isa(layout, own_cpu_flags(), machine())
    click.echo(f"edgeawq: this bundle has no kernels for this CPU; building or loading {isa}", err=True)
    return NativeKernel(isa, build_object(describe_host(isa), isa))


def describe_host(isa: str) -> Target:
    """This machine as a compiler wants it: LLVM's own name and features of the CPU."""
    import llvmlite.binding as llvm

    from cpu_kernels.isa.catalog import ISAS
    from device_profiles.target import Target
    from edgeawq.runtime.cpu import machine

    # a portable kernel uses no instruction of its set, so any set of the machine may stand in the target
    base = isa.removesuffix("_portable")
    if ISAS[base].machine != machine():
        base = "neon" if machine() == "aarch64" else "avx2"
    features = llvm.get_host_cpu_features()
    signed = tuple(sorted(f"{'+' if has else '-'}{name}" for name, has in features.items()))
    return Target(f"{machine()}-unknown-linux-gnu", llvm.get_host_cpu_name(), signed, base)
