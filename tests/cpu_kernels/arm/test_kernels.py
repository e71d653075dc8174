"""The cross-compiled kernels themselves, on an emulated Cortex-A72 and Cortex-A76.

Against float64, and bit for bit against the plain meaning of the same kernels on this machine: every instruction set's
sums are exact integers, and what follows is the same float32 arithmetic in the same order.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

import numpy as np
import pytest

from cpu_kernels.build import build
from device_profiles.profile import load_profile
from tests.cpu_kernels.arm.cases import Check, all_cases
from tests.cpu_kernels.arm.driver import exported_symbols, link_program
from tests.cpu_kernels.arm.memory import Memory, Result
from tests.cpu_kernels.arm.tools import find_lld, find_qemu
from tests.cpu_kernels.native_kernels import load_kernels

BOARDS = {"pi4": "cortex-a72", "pi5": "cortex-a76"}


@dataclass(frozen=True)
class Ran:
    arm: Result
    here: Result
    checks: dict[str, Check]


@pytest.fixture(scope="module", params=list(BOARDS))
def ran(request, tmp_path_factory):
    """All cases of one board, in one emulated process."""
    qemu, lld = find_qemu(), find_lld()
    target = load_profile(request.param).target
    native, assembly = build(target, target.isa, "kernels")
    symbols = exported_symbols(assembly)
    program = link_program(lld, native, symbols, tmp_path_factory.mktemp("arm"))
    memory, rng = Memory(symbols), np.random.default_rng()
    checks = {name: case(memory, rng) for name, case in all_cases().items()}
    arm = memory.run_emulated(qemu, program, BOARDS[request.param])
    assert arm.status == 0, f"the emulated {BOARDS[request.param]} ended with {arm.status}"
    here = memory.run_here(load_kernels(f"{target.isa}_portable").call)
    return Ran(arm, here, checks)


@pytest.mark.parametrize("name", list(all_cases()))
def test_kernel(ran, name):
    ran.checks[name](ran.arm, ran.here)


def test_nothing_outside_the_arrays_is_written(ran):
    assert ran.arm.strays() == []
    assert ran.here.strays() == []


def test_an_object_for_the_pi5_is_an_illegal_instruction_on_a_pi4(tmp_path):
    """The emulator keeps to its CPU: what the other tests prove about instructions, they prove."""
    qemu, lld = find_qemu(), find_lld()
    target = load_profile("pi5").target
    native, assembly = build(target, target.isa, "kernels")
    symbols = exported_symbols(assembly)
    program = link_program(lld, native, symbols, tmp_path)
    memory = Memory(symbols)
    all_cases()["linear-w4a8-8x32x32-1"](memory, np.random.default_rng())
    assert memory.run_emulated(qemu, program, "cortex-a72").status == -signal.SIGILL
    assert memory.run_emulated(qemu, program, "cortex-a76").status == 0
