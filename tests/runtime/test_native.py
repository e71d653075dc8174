"""Which of a bundle's objects a CPU gets, and what it is told where it gets none. Nothing is loaded."""

from __future__ import annotations

import pytest

from edgeawq.errors import KernelError
from edgeawq.runtime.native import choose_kernel
from packager.manifest import KernelEntry

ARM = "aarch64-unknown-linux-gnu"
PI4 = "fp asimd crc32"
PI5 = f"{PI4} atomics asimddp"
I8MM = f"{PI5} i8mm"


def entry(isa: str, triple: str = ARM) -> KernelEntry:
    return KernelEntry(file=f"kernels/{isa}.o", isa=isa, triple=triple, cpu="generic", features=(), bits=(4, 8), abi=1)


@pytest.fixture
def on_arm(monkeypatch: pytest.MonkeyPatch):
    """A 64-bit Arm machine with these flags in /proc/cpuinfo."""

    def become(flags: str) -> None:
        words = frozenset(flags.split())
        for module in ("native", "cpu"):
            monkeypatch.setattr(f"edgeawq.runtime.{module}.own_cpu_flags", lambda: words)
        monkeypatch.setattr("edgeawq.runtime.native.machine", lambda: "aarch64")
        monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", dict)

    return become


@pytest.mark.parametrize(("flags", "isa"), [(PI4, "neon"), (PI5, "neon_dotprod"), (I8MM, "neon_i8mm")])
def test_the_best_object_that_the_cpu_can_run_is_taken(on_arm, flags: str, isa: str) -> None:
    on_arm(flags)
    kernels = tuple(entry(name) for name in ("neon", "neon_i8mm", "neon_dotprod"))
    assert choose_kernel(kernels).isa == choose_kernel(kernels[::-1]).isa == isa


@pytest.mark.parametrize(("flags", "profile"), [(PI4, "pi4"), (PI5, "pi5")])
def test_a_cpu_without_the_matrix_product_is_told_so_and_which_profile_fits(on_arm, flags: str, profile: str) -> None:
    on_arm(flags)
    with pytest.raises(KernelError, match="neon_i8mm: this CPU lacks .*i8mm") as caught:
        choose_kernel((entry("neon_i8mm"),))
    assert f"--device {profile} " in caught.value.remedy


def test_a_cpu_with_the_matrix_product_is_sent_to_its_profile(on_arm) -> None:
    on_arm(I8MM)
    with pytest.raises(KernelError) as caught:
        choose_kernel((entry("avx2", "x86_64-unknown-linux-gnu"),))
    assert "--device arm-i8mm " in caught.value.remedy
