"""Whole forward steps of tiny models in the cross-compiled decoder, on an emulated Cortex-A72 and Cortex-A76.

The context, the bundle and the buffers are the runtime's own, moved to the emulated program's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from cpu_kernels import abi
from cpu_kernels.build import build
from device_profiles.profile import load_profile
from edgeawq.runtime import decoder as runtime
from edgeawq.runtime.bundle import Bundle, open_bundle
from edgeawq.runtime.native import load_object
from packager.pack import pack_checkpoint
from tests.cpu_kernels.arm.driver import exported_symbols, link_program
from tests.cpu_kernels.arm.memory import Memory, Result, Slot
from tests.cpu_kernels.arm.tools import find_lld, find_qemu
from tests.cpu_kernels.native_kernels import host_target, normalized_error
from tests.runtime.native_bundles import reference_logits
from tests.tiny_models import make_tiny_model

BOARDS = {"pi4": "cortex-a72", "pi5": "cortex-a76"}
CONTEXT_LENGTH = 96
STACK_BYTES = 1 << 18
STEPS = (1, 33, 5, 1)  # tokens of each step: one, more than a block of keys, a tail of four plus one, one
MODELS = {
    "gqa-tied": {"n_heads": 6, "n_kv_heads": 2, "head_dim": 32, "tie": True},
    "mqa-odd": {
        "hidden": 160, "intermediate": 352, "n_heads": 4, "n_kv_heads": 1, "head_dim": 48, "group_size": 32,
        "tie": False, "attention_bias": True, "head_bits": 4,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """What the Arm machine and this one made of the same memory, and where each step's logits lie in it."""

    arm: Result
    here: Result
    logits: dict[str, list[Slot]]
    tokens: list[int]
    expected: np.ndarray
    vocab: int

    def computed(self, result: Result, name: str) -> np.ndarray:
        """float32 [tokens, vocab] of all steps."""
        return np.concatenate([result.read(slot) for slot in self.logits[name]])[:, : self.vocab]


def place_decoder(memory: Memory, bundle: Bundle, activations: str, threads: int) -> tuple[int, Slot]:
    """(address of the context, logits of the last step): the runtime's own context, its addresses moved."""
    dtype = np.dtype({"f16": np.float16, "f32": np.float32}[abi.CACHE_ELEMENT[activations]])
    buffers = runtime._Buffers(bundle.manifest.model, threads, CONTEXT_LENGTH, dtype)
    buffers.grow_logits(abi.MAX_TOKENS)
    tables = runtime._rotary_tables(bundle, CONTEXT_LENGTH)
    context = runtime._make_context(bundle, buffers, *tables, threads, CONTEXT_LENGTH)
    arrays = [bundle.weights, *tables, *(a for a in vars(buffers).values() if isinstance(a, np.ndarray))]
    moves = [(int(a.ctypes.data), a.nbytes, memory.place(a)) for a in arrays]
    own, start = memory.reserve(context.shape, np.int64), int(context.ctypes.data)
    moves.append((start, context.nbytes, own))
    moved = context.copy()
    for at, word in enumerate(context.tolist()):
        for address, nbytes, slot in moves:
            if address <= word < address + nbytes:
                moved[at] = word - address + slot.address
    filled = memory.place(moved)
    memory.call("memcpy", own.address, filled.address, own.nbytes)
    logits = next(slot for address, _, slot in moves if address == buffers.logits.ctypes.data)
    return own.address, logits


def place_steps(memory: Memory, bundle: Bundle, activations: str, threads: int, tokens: list[int]) -> list[Slot]:
    """Calls for STEPS with logits after every token, each copied to a place of its own."""
    at, logits = place_decoder(memory, bundle, activations, threads)
    for thread in range(1, threads):
        stack = memory.reserve((STACK_BYTES,), np.uint8)
        serve = memory.index(f"edgeawq_serve_{activations}")
        memory.call("spawn", serve, at, thread, stack.address + STACK_BYTES)
    results, position = [], 0
    ids = memory.place(np.array(tokens, np.int32))
    for count in STEPS:
        for word, value in (
            (abi.N_TOKENS, count),
            (abi.POSITION, position),
            (abi.LOGITS_MODE, abi.LOGITS_ALL),
            (abi.TOKENS, ids.address + 4 * position),
        ):
            memory.call("poke", at + 8 * word, value)
        memory.call(f"edgeawq_step_{activations}", at)
        kept = memory.reserve((count, *logits.shape[1:]), np.float32)
        memory.call("memcpy", kept.address, logits.address, kept.nbytes)
        results.append(kept)
        position += count
    if threads > 1:
        memory.call("edgeawq_stop", at)
    return results


VARIANTS = {"int8-1": ("int8", 1), "int8-3": ("int8", 3), "float-1": ("float", 1), "float-2": ("float", 2)}


@pytest.fixture(scope="module", params=[(board, model) for board in BOARDS for model in MODELS], ids="-".join)
def ran(request, tmp_path_factory):
    """Every kind of activations and number of threads, in one emulated process."""
    qemu, lld = find_qemu(), find_lld()
    board, model_name = request.param
    folder, profile = tmp_path_factory.mktemp("arm"), load_profile(board)
    model = make_tiny_model(int(np.random.default_rng().integers(1 << 30)), **MODELS[model_name])
    pack_checkpoint(model, profile, folder / "tiny.edgeawq")
    bundle = open_bundle(folder / "tiny.edgeawq")
    tokens = np.random.default_rng().integers(0, model.config.vocab_size, sum(STEPS)).tolist()
    native, assembly = build(profile.target, profile.target.isa)
    memory = Memory(exported_symbols(assembly))
    logits = {name: place_steps(memory, bundle, *variant, tokens) for name, variant in VARIANTS.items()}
    program = link_program(lld, native, memory.symbols, folder)
    arm = memory.run_emulated(qemu, program, BOARDS[board])
    assert arm.status == 0, f"the emulated {BOARDS[board]} ended with {arm.status}"
    # the plain meaning of both instruction sets is the same sum of integers: one object serves both
    loaded = load_object(build(host_target(), "neon_portable")[0])
    here = memory.run_here(lambda symbol, *arguments: loaded.function(symbol, len(arguments))(*arguments))
    return Ran(arm, here, logits, tokens, reference_logits(model, tokens), model.config.vocab_size)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("float")])
def test_float_activations_agree_with_torch(ran, name):
    assert normalized_error(ran.computed(ran.arm, name), ran.expected) < 1e-9


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("int8")])
def test_int8_activations_stay_close_to_torch(ran, name):
    assert normalized_error(ran.computed(ran.arm, name), ran.expected) < 5e-4


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_plain_meaning_on_this_machine_gives_the_same_bits(ran, name):
    np.testing.assert_array_equal(ran.computed(ran.arm, name), ran.computed(ran.here, name))


def test_nothing_outside_the_arrays_is_written(ran):
    assert ran.arm.strays() == []
