"""What a compiler must know about a device: one frozen value, parsed and passed, never global."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeawq.errors import ProfileError

ISAS = ("neon", "neon_dotprod", "neon_i8mm", "avx2", "avxvnni", "avx512vnni")

_ISA_MACHINE = {
    "neon": "aarch64",
    "neon_dotprod": "aarch64",
    "neon_i8mm": "aarch64",
    "avx2": "x86_64",
    "avxvnni": "x86_64",
    "avx512vnni": "x86_64",
}
_TRIPLE = re.compile(r"[a-z0-9_]+(-[a-z0-9_.]+){2,3}")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FEATURE = re.compile(r"[+-][a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class Target:
    """Triple, CPU and features as LLVM names them, and the instruction set that the kernels are written in.

    features carry LLVM's sign: ("+neon", "-aes"). isa is one of `ISAS` and must belong to the triple's machine.
    """

    triple: str
    cpu: str
    features: tuple[str, ...]
    isa: str

    def __post_init__(self) -> None:
        if not _TRIPLE.fullmatch(self.triple):
            raise ProfileError(
                f"{self.triple!r} is not an LLVM target triple",
                remedy="write it as machine-vendor-system-abi, such as aarch64-unknown-linux-gnu",
            )
        if not _CPU.fullmatch(self.cpu):
            raise ProfileError(f"{self.cpu!r} is not an LLVM CPU name", remedy="for example cortex-a72 or x86-64-v3")
        for feature in self.features:
            if not _FEATURE.fullmatch(feature):
                raise ProfileError(f"{feature!r} is not an LLVM feature", remedy="write +name or -name: +dotprod")
        if self.isa not in ISAS:
            raise ProfileError(f"unknown instruction set {self.isa!r}", remedy=f"known: {', '.join(ISAS)}")
        if _ISA_MACHINE[self.isa] != self.machine:
            raise ProfileError(
                f"instruction set {self.isa!r} belongs to {_ISA_MACHINE[self.isa]}, {self.triple!r} does not",
                remedy=f"known: {', '.join(f'{isa} ({machine})' for isa, machine in _ISA_MACHINE.items())}",
            )

    @property
    def machine(self) -> str:
        """The machine as `uname -m` names it: "aarch64" or "x86_64"."""
        return self.triple.split("-", 1)[0]

    @property
    def feature_string(self) -> str:
        """The features as LLVM takes them: "+neon,-aes"."""
        return ",".join(self.features)

    def __str__(self) -> str:
        """The text that `parse_target` reads back: "triple:cpu:+feature,-feature:isa"."""
        return f"{self.triple}:{self.cpu}:{self.feature_string}:{self.isa}"


def parse_target(text: str) -> Target:
    """Read "triple:cpu:+feature,-feature:isa", the inverse of `str(target)`; the features may be empty."""
    parts = text.split(":")
    if len(parts) != 4:
        raise ProfileError(
            f"{text!r} is not a target: {len(parts)} parts instead of 4",
            remedy="write triple:cpu:features:isa, such as aarch64-unknown-linux-gnu:cortex-a72:+neon:neon",
        )
    triple, cpu, features, isa = parts
    return Target(triple, cpu, tuple(features.split(",")) if features else (), isa)
