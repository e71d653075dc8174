"""What a CPU must show in /proc/cpuinfo before an object for an instruction set may run on it. Imports nothing."""

from __future__ import annotations

_V3 = ("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm")

REQUIRED_CPU_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": _V3,
    "avxvnni": (*_V3, "avx_vnni"),
    "avx512vnni": (*_V3, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
    "neon": ("asimd",),
    "neon_dotprod": ("asimd", "asimddp"),
    "neon_i8mm": ("asimd", "asimddp", "i8mm"),
}

# Best first: which object a machine that can run several should take.
PREFERENCE = ("avx512vnni", "avxvnni", "avx2", "neon_i8mm", "neon_dotprod", "neon")
