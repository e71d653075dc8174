"""The inner loops of the Arm objects are those that docs/benchmarks.md reckons with. Needs no program but Numba."""

from __future__ import annotations

import pytest

from benchmarks.arm_loops import Loop, read_function
from cpu_kernels.build import WEIGHT_BITS, build, build_assembly
from device_profiles.profile import load_profile

SPILL = r"(ldr|str|ldp|stp) .*\[sp"


def multiply_loops(board: str, symbol: str) -> list[Loop]:
    """The loops over the columns: not those over the constants of groups."""
    target = load_profile(board).target
    loops = read_function(build_assembly(target, target.isa), symbol).inner_loops()
    return [loop for loop in loops if loop.count(r"sm(ul|la)l|sdot") >= 8]


@pytest.mark.parametrize("symbol", ["linear_w4a8", "linear_w8a8", "gated_w4a8", "gated_w8a8"])
def test_a_pi4_multiplies_upper_halves_where_they_are(symbol):
    loops = multiply_loops("pi4", symbol)
    assert loops
    for loop in loops:
        lower, upper = loop.count(r"sm(ul|la)l v"), loop.count(r"sm(ul|la)l2 v")
        assert lower == upper and loop.count(r"ext ") == 0, loop.body
        assert loop.count("sadalp") >= 4 and loop.count("addp") == 0
        assert loop.count(SPILL) == 0


@pytest.mark.parametrize("symbol", ["linear_w4a8", "linear_w8a8", "gated_w4a8", "gated_w8a8"])
def test_a_pi5_takes_activations_by_lane(symbol):
    loops = multiply_loops("pi5", symbol)
    assert loops
    for loop in loops:
        assert loop.count(r"sdot v\d+\.4s, v\d+\.16b, v\d+\.4b\[") == loop.count("sdot")
        assert loop.count("ld1r") == loop.count("dup") == 0
        assert loop.count(SPILL) == 0


@pytest.mark.parametrize("layer", ["linear", "gated"])
@pytest.mark.parametrize(("bits", "shuffles", "unpacked"), [(4, 16, 16), (8, 24, 0)])
def test_i8mm_multiplies_two_rows_by_two(layer, bits, shuffles, unpacked):
    """32 columns, 8 rows and 4 activation rows: half of the dot product's 64 instructions."""
    target = load_profile("arm-i8mm").target
    assembly = build(target, target.isa, "linear", WEIGHT_BITS)[1]
    loops = read_function(assembly, f"{layer}_w{bits}a8").inner_loops()
    fours = [loop for loop in loops if loop.count("usmmla")]
    assert len(fours) == (2 if layer == "gated" else 1)
    for four in fours:
        assert four.count("usmmla") == 32 and four.count(r"u?sdot") == 0
        assert four.count(r"(zip|uzp)[12] v\d+\.4s") == shuffles
        assert four.count(r"(and|ushr|eor) v\d+\.16b") == unpacked
        assert four.count(SPILL) == 0
    # one row: the dot product by lane, with signed or unsigned weights
    ones = [loop for loop in loops if loop.count("sdot" if bits == 4 else "usdot")]
    assert ones and all(loop.count(r"u?sdot v\d+\.4s, v\d+\.16b, v\d+\.4b\[") == 16 for loop in ones)
    assert all(loop.count(r"eor v") == 0 for loop in ones)


@pytest.mark.parametrize(("board", "most"), [("pi4", 8.5), ("pi5", 6.0)])
def test_instructions_for_32_weights(board, most):
    per_product = {"pi4": 8, "pi5": 16}[board]
    for loop in multiply_loops(board, "linear_w4a8"):
        products = per_product * loop.count(r"sm(ul|la)l|sdot")
        # apart from what asks for weights ahead: a line for 64 bytes, which are 128 weights
        lines = loop.count("prfm")
        assert lines in (0, products // 128)
        assert (len(loop.body) - lines) * 32 / products <= most
