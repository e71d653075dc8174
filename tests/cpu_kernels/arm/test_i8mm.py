"""Linear layers with the int8 matrix product, on an emulated CPU that has it: the only kernels in which it differs.

As in test_kernels: against float64, and bit for bit against the plain meaning of the same kernels on this machine.
"""

from __future__ import annotations

import re
import signal

import numpy as np
import pytest

from cpu_kernels.build import WEIGHT_BITS, build
from device_profiles.profile import load_profile
from tests.cpu_kernels.arm.cases import Check, all_cases
from tests.cpu_kernels.arm.driver import exported_symbols, link_program
from tests.cpu_kernels.arm.memory import Memory, Result
from tests.cpu_kernels.arm.tools import find_lld, find_qemu
from tests.cpu_kernels.native_kernels import load_kernels

CPU = "max"  # the one CPU of older emulators that has the matrix product
CASES = {name: case for name, case in all_cases().items() if re.match(r"(linear|extreme|gated)-w\da8-", name)}


def link_linear(folder):
    """(program, its functions): the object as a bundle for such a device would have it."""
    lld = find_lld()
    target = load_profile("arm-i8mm").target
    native, assembly = build(target, target.isa, "linear", bits=WEIGHT_BITS)
    symbols = exported_symbols(assembly)
    return link_program(lld, native, symbols, folder), symbols


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Result, Result, dict[str, Check]]:
    """All cases, in one emulated process and in this one."""
    qemu = find_qemu()
    program, symbols = link_linear(tmp_path_factory.mktemp("i8mm"))
    memory, rng = Memory(symbols), np.random.default_rng()
    checks = {name: case(memory, rng) for name, case in CASES.items()}
    arm = memory.run_emulated(qemu, program, CPU)
    assert arm.status == 0, f"the emulated CPU ended with {arm.status}"
    return arm, memory.run_here(load_kernels("neon_i8mm_portable").call), checks


@pytest.mark.parametrize("name", list(CASES))
def test_kernel(ran, name):
    arm, here, checks = ran
    checks[name](arm, here)


def test_nothing_outside_the_arrays_is_written(ran):
    assert ran[0].strays() == [] and ran[1].strays() == []


def test_it_is_an_illegal_instruction_on_a_cpu_with_the_dot_product_alone(tmp_path):
    qemu = find_qemu()
    program, symbols = link_linear(tmp_path)
    memory = Memory(symbols)
    all_cases()["linear-w4a8-8x32x32-4"](memory, np.random.default_rng())
    assert memory.run_emulated(qemu, program, "cortex-a76").status == -signal.SIGILL
    assert memory.run_emulated(qemu, program, CPU).status == 0
