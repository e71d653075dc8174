"""The generated code holds the instructions meant, for every instruction set, whatever machine runs the tests."""

from __future__ import annotations

import re

import pytest

from cpu_kernels.build import build_assembly
from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from cpu_kernels.crosscompile import ALLOWED_SYMBOLS
from device_profiles.profile import list_profiles, load_profile
from device_profiles.target import Target

TARGETS = {
    "avx2": Target("x86_64-unknown-linux-gnu", "x86-64-v3", (), "avx2"),
    "avx512vnni": Target("x86_64-unknown-linux-gnu", "icelake-client", ("-gfni",), "avx512vnni"),
    "neon": Target("aarch64-unknown-linux-gnu", "cortex-a72", ("+neon",), "neon"),
    "neon_dotprod": Target("aarch64-unknown-linux-gnu", "cortex-a76", ("+neon", "+dotprod"), "neon_dotprod"),
}


def function_lines(assembly: str, symbol: str) -> list[str]:
    """The lines of an exported kernel. The export only calls Numba's function, which is what counts."""

    def body(name: str) -> str:
        match = re.search(rf"^{re.escape(name)}:[^\n]*\n(.*?)^\.Lfunc_end", assembly, re.DOTALL | re.MULTILINE)
        assert match, name
        return match[1]

    inner = re.search(r"(_ZN\w+)", body(symbol))
    assert inner, symbol
    return [line.strip() for line in body(inner[1]).splitlines()]


def innermost_loop(assembly: str, symbol: str, needle: str) -> list[str]:
    """The instructions between the last label before the first `needle` and the branch back to it."""
    lines = function_lines(assembly, symbol)
    at = next(i for i, line in enumerate(lines) if line.startswith(needle))
    start = max(i for i in range(at) if lines[i].endswith(":") and lines[i].startswith(".LBB"))
    label = lines[start].removesuffix(":")
    end = next(i for i in range(at, len(lines)) if lines[i].endswith(label))
    return [line for line in lines[start + 1 : end + 1] if line and not line.startswith((".", "#", "//"))]


def count(lines: list[str], pattern: str) -> int:
    return sum(bool(re.match(pattern, line)) for line in lines)


@pytest.fixture(scope="module", params=["neon", "neon_dotprod"])
def arm_loop(request):
    """32 columns × 8 rows of 4-bit weights: 128 packed bytes, 8 registers."""
    assembly = build_assembly(TARGETS[request.param], request.param, "kernels")
    needle = "sdot" if request.param == "neon_dotprod" else "smull"
    return request.param, innermost_loop(assembly, "linear_w4a8", needle)


def test_neon_unpacks_32_weights_with_and_plus_ushr(arm_loop):
    name, loop = arm_loop
    # spilled registers come back from the stack and are not weights
    registers = count(loop, r"ldr\s+q\d+, \[x") + 2 * count(loop, r"ldp\s+q\d+, q\d+, \[x")
    masks, shifts = count(loop, r"and\s+v\d+\.16b"), count(loop, r"ushr\s+v\d+\.16b")
    assert registers > 0
    # one `and` and one `ushr` for the 32 weights of each 16-byte register: with the load, three instructions
    assert masks == registers and shifts == registers, (name, loop)


def test_neon_without_dot_product_multiplies_in_16_bits(arm_loop):
    name, loop = arm_loop
    text = "\n".join(loop)
    if name == "neon":
        assert "sdot" not in text and "udot" not in text
        assert count(loop, r"smlal") + count(loop, r"smull") >= 32  # 8 registers × 2 nibbles × 2 halves
    else:
        assert count(loop, r"sdot") > 0 and "smull" not in text


def test_avx2_feeds_nibbles_straight_into_maddubs():
    assembly = build_assembly(TARGETS["avx2"], "avx2", "kernels")
    loop = innermost_loop(assembly, "linear_w4a8", "vpmaddubsw")
    text = "\n".join(loop)
    assert "%zmm" not in text
    assert count(loop, r"vpmaddubsw") >= 8
    # one widening multiply for a whole chain of 32 columns
    assert count(loop, r"vpmaddwd") * 8 <= count(loop, r"vpmaddubsw")


def test_avx512_uses_the_dot_product_on_whole_registers():
    assembly = build_assembly(TARGETS["avx512vnni"], "avx512vnni", "kernels")
    loop = innermost_loop(assembly, "linear_w4a8", "vpdpbusd")
    assert count(loop, r"vpdpbusd.*%zmm") >= 8
    assert "vpmaddubsw" not in "\n".join(loop)


@pytest.mark.parametrize("isa", sorted(TARGETS))
def test_objects_ask_for_nothing_but_libc(isa):
    assembly = build_assembly(TARGETS[isa], isa, "kernels")
    called = set(re.findall(r"\b(?:callq?|bl|jmp|b)\s+([A-Za-z_]\w*)(?:@PLT)?\s*$", assembly, re.MULTILINE))
    defined = set(re.findall(r"^(\w+):", assembly, re.MULTILINE))
    assert called - defined <= ALLOWED_SYMBOLS


@pytest.mark.parametrize("name", [profile for profile in list_profiles() if profile != "host"])
def test_every_profile_names_an_instruction_set_that_is_there(name):
    profile = load_profile(name)
    assert profile.target.isa in REQUIRED_CPU_FLAGS
