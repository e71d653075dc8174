"""The cross-compiled probe object on emulated boards: it runs there, and computes what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from cpu_kernels import abi
from cpu_kernels.build import build
from cpu_kernels.isa.catalog import ISAS
from cpu_kernels.probe import words
from device_profiles.profile import load_profile
from tests.cpu_kernels.arm.driver import exported_symbols, link_program
from tests.cpu_kernels.arm.memory import Memory, Result, Slot
from tests.cpu_kernels.arm.tools import find_lld, find_qemu

BOARDS = {"pi4": "cortex-a72", "pi5": "cortex-a76", "arm-i8mm": "max"}
STACK_BYTES = 1 << 18
THREADS = 3
SHARE = 2 * words.BLOCK
TABLE_BYTES = (words.WEIGHT_REGISTERS + 4) * 64


@dataclass(frozen=True)
class Runs:
    """Each run's results, int64 [THREADS, RESULT_WORDS], by name; and the arrays that were worked on."""

    result: Result
    results: dict[str, Slot]
    arrays: dict[str, Slot]
    read: np.ndarray
    factors: tuple[np.ndarray, np.ndarray]

    def words(self, name: str) -> np.ndarray:
        return self.result.read(self.results[name])


@pytest.fixture(scope="module", params=list(BOARDS))
def runs(request, tmp_path_factory) -> tuple[str, Runs]:
    qemu, lld = find_qemu(), find_lld()
    board = request.param
    profile, folder = load_profile(board), tmp_path_factory.mktemp("probe")
    native, assembly = build(profile.target, profile.target.isa, "probe")
    memory = Memory(exported_symbols(assembly))
    rng = np.random.default_rng()
    count = THREADS * SHARE // 4
    read = rng.integers(-(2**31), 2**31, count, dtype=np.int32)
    factors = rng.normal(size=count).astype(np.float32), rng.normal(size=count).astype(np.float32)
    arrays = {
        "read": memory.place(read),
        "copied": memory.reserve((count,), np.int32),
        "y": memory.place(factors[0]),
        "z": memory.place(factors[1]),
        "triad": memory.reserve((count,), np.float32),
        "table": memory.place(np.ones(THREADS * TABLE_BYTES, np.uint8)),
        "sync": memory.place(np.zeros(abi.SYNC_WORDS, np.int32)),
        "results": memory.place(np.zeros((THREADS, words.RESULT_WORDS), np.int64)),
    }
    context = np.zeros(words.PROBE_WORDS, np.int64)
    context[abi.N_THREADS], context[abi.SYNC] = THREADS, arrays["sync"].address
    context[abi.SPIN_LIMIT], context[words.RESULTS] = 100, arrays["results"].address
    at = memory.place(context).address
    for thread in range(1, THREADS):
        stack = memory.reserve((STACK_BYTES,), np.uint8)
        memory.call("spawn", memory.index("edgeawq_probe_serve"), at, thread, stack.address + STACK_BYTES)
    kept: dict[str, Slot] = {}

    def run(name: str, operation: int, a: str, b: str = "y", c: str = "z", *, stride: int = SHARE, repeats: int = 2):
        values = {
            words.OPERATION: operation,
            words.REPEATS: repeats,
            words.A: arrays[a].address,
            words.B: arrays[b].address,
            words.C: arrays[c].address,
            words.BYTES: SHARE,
            words.STRIDE: stride,
        }
        for word, value in values.items():
            memory.call("poke", at + 8 * word, value)
        memory.call("edgeawq_probe_step", at)
        kept[name] = memory.reserve((THREADS, words.RESULT_WORDS), np.int64)
        memory.call("memcpy", kept[name].address, arrays["results"].address, kept[name].nbytes)

    run("read", words.READ, "read")
    run("copy", words.COPY, "read", "copied")
    run("triad", words.TRIAD, "triad")
    run("fp32", words.FP32, "table")
    run("fp16", words.FP16, "table")
    run("int8_nibbles", words.INT8_NIBBLES, "table", stride=TABLE_BYTES)
    run("int8_bytes", words.INT8_BYTES, "table", stride=TABLE_BYTES)
    run("chain", words.CHAIN, "table", repeats=3)
    run("barrier", words.BARRIER, "table", repeats=20)
    memory.call("edgeawq_stop", at)
    program = link_program(lld, native, memory.symbols, folder)
    result = memory.run_emulated(qemu, program, BOARDS[board])
    assert result.status == 0, f"the emulated {BOARDS[board]} ended with {result.status}"
    return board, Runs(result, kept, arrays, read, factors)


def test_memory_loops_give_what_numpy_gives(runs: tuple[str, Runs]) -> None:
    _, ran = runs
    for thread, check in enumerate(ran.words("read")[:, words.CHECK]):
        part = ran.read[thread * SHARE // 4 : (thread + 1) * SHARE // 4]
        assert check == (2 * part.astype(np.int64)).sum().astype(np.int32)
    np.testing.assert_array_equal(ran.result.read(ran.arrays["copied"]), ran.read)
    y, z = ran.factors
    np.testing.assert_allclose(ran.result.read(ran.arrays["triad"]), y + 3 * z, rtol=1e-6, atol=1e-6)


def test_every_thread_did_its_work_and_took_time(runs: tuple[str, Runs]) -> None:
    board, ran = runs
    for name in ran.results:
        found = ran.words(name)
        assert (found[:, words.END] >= found[:, words.START]).all(), name
        if name == "fp16" and board == "pi4":
            assert not found[:, words.WORK].any()  # this chip has no such arithmetic
        else:
            assert (found[:, words.WORK] > 0).all(), name
    assert (ran.words("copy")[:, words.WORK] == 2 * 2 * SHARE).all()
    assert (ran.words("chain")[:, words.WORK] == 3 * words.CHAIN_CYCLES).all()
    assert (ran.words("barrier")[:, words.WORK] == 20).all()


def test_int8_loops_multiply_as_often_as_they_say(runs: tuple[str, Runs]) -> None:
    """Weights and activations are one: the sum of all lanes is the number of multiply-adds."""
    board, ran = runs
    offset = ISAS[load_profile(board).target.isa].byte_offset
    for name in ("int8_nibbles", "int8_bytes"):
        found = ran.words(name)
        products = found[:, words.WORK] // 2
        # an 8-bit weight is taken as w - offset
        expected = products if name == "int8_nibbles" else products * (1 - offset)
        np.testing.assert_array_equal(found[:, words.CHECK], expected)


def test_nothing_outside_the_arrays_is_written(runs: tuple[str, Runs]) -> None:
    assert runs[1].result.strays() == []
