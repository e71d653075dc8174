"""The probes' loops, instruction by instruction: what they claim to compute is what they execute, on every target.

A compiler that sees through a loop (equal chains, constants, factors) makes a peak of what was never computed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from cpu_kernels.build import build
from cpu_kernels.probe import words
from cpu_kernels.probe.compute import CHAINS
from device_profiles.profile import load_profile
from device_profiles.target import Target

TARGETS = {
    "avx2": Target("x86_64-unknown-linux-gnu", "x86-64-v3", (), "avx2"),
    "avx512vnni": Target("x86_64-unknown-linux-gnu", "icelake-client", ("-gfni",), "avx512vnni"),
    "neon": Target("aarch64-unknown-linux-gnu", "cortex-a72", ("+neon",), "neon"),
    "neon_dotprod": Target(
        "aarch64-unknown-linux-gnu", "cortex-a76", ("+neon", "+dotprod", "+fullfp16"), "neon_dotprod"
    ),
    "neon_i8mm": load_profile("arm-i8mm").target,
}
LANES = {"avx2": 8, "avx512vnni": 16, "neon": 8, "neon_dotprod": 8, "neon_i8mm": 8}
ROWS = {"avx2": 4, "avx512vnni": 4, "neon": 2, "neon_dotprod": 4}
FULL_FP16 = ("neon_dotprod", "neon_i8mm")
MATRICES = ("neon_i8mm",)  # one loop for weights of every width


@dataclass(frozen=True)
class Loop:
    """The instructions between a label and the branch back to it."""

    lines: tuple[str, ...]

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in self.lines)


@pytest.fixture(scope="module", params=sorted(TARGETS))
def probe(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param, build(TARGETS[request.param], request.param, "probe")[1]


def loops_of(assembly: str, name: str) -> list[list[Loop]]:
    """For each function whose mangled name holds `name`: its innermost loops."""
    found = []
    pattern = rf"^(_ZN\w*{name}\w*):[^\n]*\n(.*?)^\.Lfunc_end"
    for match in re.finditer(pattern, assembly, re.DOTALL | re.MULTILINE):
        lines = [line.strip() for line in match[2].splitlines()]
        labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
        loops = []
        for end, line in enumerate(lines):
            target = re.search(r"(\.LBB\w+)$", line)
            start = labels.get(target[1], end) if target else end
            inside = range(start + 1, end)
            # no jump backwards inside: an innermost loop
            if start < end and not any(
                (inner := re.search(r"(\.LBB\w+)$", lines[at])) and labels.get(inner[1], at) <= at for at in inside
            ):
                loops.append(Loop(tuple(line for line in lines[start + 1 : end + 1] if line and line[0] not in ".#/")))
        found.append(loops)
    return found


def main_loop(assembly: str, name: str, pattern: str) -> Loop:
    """The loop of the function with the most instructions of a kind."""
    loops = [loop for function in loops_of(assembly, name) for loop in function]
    return max(loops, key=lambda loop: loop.count(pattern))


def vector_bits(isa: str) -> int:
    return {"avx2": 256, "avx512vnni": 512}.get(isa, 128)


def test_fp32_multiplies_and_adds_in_every_chain(probe: tuple[str, str]) -> None:
    isa, assembly = probe
    loop = main_loop(assembly, "multiply_add", r"(vfmadd\w*ps|fmla)\b")
    multiply_adds = loop.count(r"vfmadd\w*ps\b|fmla\s+v\d+\.4s|fmad|fmla\b.*\.4s|fmadd")
    a_round = CHAINS * LANES[isa] * 32 // vector_bits(isa)
    assert multiply_adds > 0 and multiply_adds % a_round == 0
    # constants stay in registers: nothing else but the counter and moves that renaming hides
    assert len(loop.lines) - multiply_adds <= multiply_adds // 2 + 4


def test_fp16_is_there_where_the_chip_has_it(probe: tuple[str, str]) -> None:
    isa, assembly = probe
    functions = loops_of(assembly, "multiply_add")
    halves = [loop for loops in functions for loop in loops if loop.count(r"fmla\b.*\.8h")]
    assert bool(halves) == (isa in FULL_FP16)
    for loop in halves:
        assert loop.count(r"fmla\b.*\.8h") % (CHAINS * 2 * LANES[isa] * 16 // 128) == 0


def test_int8_nibbles_are_multiplied_each_time(probe: tuple[str, str]) -> None:
    isa, assembly = probe
    bytes_of_round = 4 * LANES[isa]
    if isa in ("avx2", "neon"):
        pattern = r"vpmaddubsw|sm(ul|la)l2?\b"
        loop = main_loop(assembly, "_make_chained_nibbles\\w*chains", pattern)
        products = loop.count(pattern) * (32 if isa == "avx2" else 8)
        assert products % (words.ROUND_REGISTERS * bytes_of_round * ROWS[isa]) == 0
    elif isa in MATRICES:
        loop = main_loop(assembly, "_make_pairs", "usmmla")
        products = 32 * loop.count("usmmla")
        assert products % (8 * 8 * LANES[isa]) == 0
        assert len(loop.lines) <= loop.count("usmmla") + 4  # all from registers
    else:
        pattern = r"vpdpbusd|sdot"
        loop = main_loop(assembly, "_make_dot_nibbles", pattern)
        products = loop.count(pattern) * vector_bits(isa) // 8
        assert products % (CHAINS * bytes_of_round) == 0
    assert products > 0


def test_int8_bytes_are_multiplied_each_time(probe: tuple[str, str]) -> None:
    isa, assembly = probe
    if isa in MATRICES:
        assert not loops_of(assembly, "_make_bytes")
        return
    pattern = r"vpmaddubsw|sm(ul|la)l2?\b|vpdpbusd|sdot"
    loop = main_loop(assembly, "_make_bytes", pattern)
    width = {"avx2": 32, "avx512vnni": 64, "neon": 8, "neon_dotprod": 16}[isa]
    products = loop.count(pattern) * width
    assert products > 0
    assert products % (words.ROUND_REGISTERS * 4 * LANES[isa] * ROWS[isa]) == 0


def test_the_chain_is_one_addition_after_the_other(probe: tuple[str, str]) -> None:
    _, assembly = probe
    loop = main_loop(assembly, "_make_chain12", r"add|xor|eor")
    steps = [line for line in loop.lines if re.match(r"(addq|xorq|add|eor)\b", line)]
    written = [re.search(r"(%\w+)$|^\w+\s+(\w+)", line) for line in steps]
    registers = [match[1] or match[2] for match in written if match]
    chained = registers.count(max(set(registers), key=registers.count))
    assert chained % words.CHAIN_CYCLES == 0 and chained > 0
    assert len(loop.lines) <= chained + 4


def test_reading_loads_every_byte_once(probe: tuple[str, str]) -> None:
    isa, assembly = probe
    loop = main_loop(assembly, "make_memory_loops\\w*4read", r"vpaddd|add\s+v")
    adds = loop.count(r"vpaddd|add\s+v\d+\.4s")
    assert adds > 0 and (adds * vector_bits(isa) // 8) % (8 * 4 * LANES[isa]) == 0
    assert loop.count(r"(vmov|str|stp|vmovdqu?\w*\s+%[yz])") == 0 or isa.startswith("avx")


def test_no_loop_became_a_call_of_the_c_library(probe: tuple[str, str]) -> None:
    _, assembly = probe
    assert not re.search(r"\b(callq?|bl)\s+(memcpy|memset|memmove)", assembly)


def test_the_counter_is_one_that_programs_may_read(probe: tuple[str, str]) -> None:
    isa, assembly = probe
    reads = re.findall(r"rdtsc\b|mrs\s+\w+,\s*(\w+)", assembly, re.IGNORECASE)
    assert reads
    if isa.startswith("neon"):
        assert {name.upper() for name in reads} == {"CNTVCT_EL0"}
