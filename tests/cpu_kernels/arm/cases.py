"""What is computed in the emulated program: many small cases in one memory, each with its own check.

A case puts its arrays and calls into the memory and returns a check, which gets the memory after the calls as the
emulated Arm machine left it, and as this machine left it when it ran the plain meaning of the same kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cpu_kernels import abi
from cpu_kernels.build import WEIGHT_BITS
from cpu_kernels.elementwise import reference_quantize_row, reference_rms_norm
from edgeawq.checkpoints.model import QuantizedLinear
from packager.layouts import LAYOUTS, pack_gate_up, pack_linear
from tests.cpu_kernels.arm.memory import Memory, Result, Slot
from tests.cpu_kernels.native_kernels import (
    activation_rows,
    assert_sums_agree,
    expected_linear,
    magnitude,
    normalized_error,
    random_linear,
)

Check = Callable[[Result, Result], None]
Case = Callable[[Memory, np.random.Generator], Check]

LAYOUT = LAYOUTS["neon"]
ROWS = LAYOUT.record_rows
STORE, ADD = 0, 1
SHAPES = [(8, 32, 32), (24, 576, 64), (21, 576, 64), (40, 1536, 128), (17, 96, 32), (1, 192, 96), (13, 160, 160)]
EXTREMES = [(top, sign) for top in (False, True) for sign in (-127, 127)]


def same_bits(slot: Slot) -> Check:
    def check(arm: Result, here: Result) -> None:
        np.testing.assert_array_equal(arm.read(slot).view(np.uint8), here.read(slot).view(np.uint8))

    return check


def place_descriptor(memory: Memory, linear: QuantizedLinear, weights: Slot, out_features: int, bias: int = 0) -> Slot:
    words = np.zeros(abi.LINEAR_WORDS, np.int64)
    words[abi.WEIGHTS] = weights.address
    words[abi.OUT_FEATURES] = out_features
    words[abi.IN_FEATURES] = linear.shape[1]
    words[abi.GROUP_SIZE] = linear.group_size
    words[abi.BITS] = linear.bits
    words[abi.BIAS] = bias
    return memory.place(words)


def int8_linear(bits: int, shape: tuple[int, int, int], tokens: int) -> Case:
    """Fresh random weights and activations, STORE, no bias."""

    def case(memory: Memory, rng: np.random.Generator) -> Check:
        out_features, in_features, group_size = shape
        linear = random_linear(rng, out_features, in_features, bits, group_size)
        rows, meant = activation_rows(rng.normal(size=(tokens, in_features)).astype(np.float32), group_size)
        padded = -(-out_features // ROWS) * ROWS
        out = memory.reserve((tokens, padded), np.float32)
        words = place_descriptor(memory, linear, memory.place(pack_linear(linear, LAYOUT)), out_features)
        memory.call(
            f"linear_w{bits}a8", words.address, STORE, memory.place(rows).address, rows.shape[1], out.address,
            padded * 4, tokens, 0, padded // ROWS,
        )  # fmt: skip

        def check(arm: Result, here: Result) -> None:
            actual = arm.read(out)
            assert_sums_agree(actual[:, :out_features], expected_linear(meant, linear), magnitude(meant, linear))
            assert not np.any(actual[:, out_features:])
            same_bits(out)(arm, here)

        return check

    return case


def float_linear(bits: int, shape: tuple[int, int, int], tokens: int) -> Case:
    """float32 activations, added to what is there, with a bias; only some of the records."""

    def case(memory: Memory, rng: np.random.Generator) -> Check:
        out_features, in_features, group_size = shape
        linear = random_linear(rng, out_features, in_features, bits, group_size)
        x = rng.normal(size=(tokens, in_features)).astype(np.float32)
        records = -(-out_features // ROWS)
        first = records // 2
        before = rng.normal(size=(tokens, records * ROWS)).astype(np.float32)
        bias = rng.normal(size=records * ROWS).astype(np.float32)
        out = memory.place(before)
        weights = memory.place(pack_linear(linear, LAYOUT))
        words = place_descriptor(memory, linear, weights, out_features, memory.place(bias).address)
        memory.call(
            f"linear_w{bits}a32", words.address, ADD, memory.place(x).address, in_features * 4, out.address,
            records * ROWS * 4, tokens, first, records,
        )  # fmt: skip

        def check(arm: Result, here: Result) -> None:
            actual = arm.read(out)
            added = before[:, :out_features], bias[:out_features]
            expected = expected_linear(x, linear) + sum(added)
            magnitudes = magnitude(x, linear) + sum(map(np.abs, added))
            touched = slice(first * ROWS, out_features)
            assert_sums_agree(actual[:, touched], expected[:, touched], magnitudes[:, touched])
            np.testing.assert_array_equal(actual[:, : first * ROWS], before[:, : first * ROWS])
            same_bits(out)(arm, here)

        return check

    return case


def extreme_linear(bits: int, top: bool, sign: int, tokens: int) -> Case:
    """The largest sums there can be: every weight at one end, every activation ±127, over 11008 columns."""

    def case(memory: Memory, rng: np.random.Generator) -> Check:
        in_features, group_size = 11008, 128
        groups = in_features // group_size
        most = (1 << bits) - 1
        linear = QuantizedLinear(
            q=np.full((ROWS, in_features), most if top else 0, np.uint8),
            scales=np.ones((ROWS, groups), np.float16),
            zeros=np.full((ROWS, groups), 0 if top else most, np.uint8),
            bits=bits,
            group_size=group_size,
        )
        rows, meant = activation_rows(np.full((tokens, in_features), sign, np.float32), group_size)
        out = memory.reserve((tokens, ROWS), np.float32)
        words = place_descriptor(memory, linear, memory.place(pack_linear(linear, LAYOUT)), ROWS)
        memory.call(
            f"linear_w{bits}a8", words.address, STORE, memory.place(rows).address, rows.shape[1], out.address,
            ROWS * 4, tokens, 0, 1,
        )  # fmt: skip

        def check(arm: Result, here: Result) -> None:
            np.testing.assert_allclose(arm.read(out), expected_linear(meant, linear), rtol=1e-6)
            same_bits(out)(arm, here)

        return check

    return case


def gated_linear(bits: int, activations: str, tokens: int) -> Case:
    """SiLU(gate) · up, with biases."""

    def case(memory: Memory, rng: np.random.Generator) -> Check:
        width, rows_out = 160, 24
        gate, up = (random_linear(rng, rows_out, width, bits, 32) for _ in range(2))
        x = rng.normal(size=(tokens, width)).astype(np.float32) * np.float32(0.3)
        rows, meant = activation_rows(x, 32) if activations == "a8" else (x, x.astype(np.float64))
        stride = rows.strides[0]
        bias = rng.normal(size=2 * rows_out).astype(np.float32)
        out = memory.reserve((tokens, rows_out), np.float32)
        weights = memory.place(pack_gate_up(gate, up, LAYOUT))
        words = place_descriptor(memory, gate, weights, 2 * rows_out, memory.place(bias).address)
        memory.call(
            f"gated_w{bits}{activations}", words.address, memory.place(rows).address, stride, out.address,
            rows_out * 4, tokens, 0, rows_out // ROWS,
        )  # fmt: skip

        def check(arm: Result, here: Result) -> None:
            g = expected_linear(meant, gate) + bias[:rows_out]
            u = expected_linear(meant, up) + bias[rows_out:]
            assert normalized_error(arm.read(out), g / (1 + np.exp(-g)) * u) < 1e-10
            same_bits(out)(arm, here)

        return check

    return case


def rms_norm(width: int) -> Case:
    def case(memory: Memory, rng: np.random.Generator) -> Check:
        x = (rng.normal(size=width) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        weight = rng.normal(size=width).astype(np.float32)
        out = memory.reserve((width,), np.float32)
        eps = int(np.float32(1e-5).view(np.int32))
        memory.call("rms_norm", memory.place(x).address, memory.place(weight).address, width, eps, out.address)

        def check(arm: Result, here: Result) -> None:
            assert normalized_error(arm.read(out), reference_rms_norm(x, weight, 1e-5)) < 1e-12
            same_bits(out)(arm, here)

        return check

    return case


def quantize_row(width: int, group_size: int) -> Case:
    def case(memory: Memory, rng: np.random.Generator) -> Check:
        x = rng.normal(size=width).astype(np.float32)
        x[:group_size] = 0
        x[-1] = 1000.0
        groups = width // group_size
        q = memory.reserve((width + 8 * groups,), np.uint8)
        memory.call("quantize_row", memory.place(x).address, width, group_size, q.address)

        def check(arm: Result, here: Result) -> None:
            values, scales, sums = reference_quantize_row(x, group_size)
            expected = np.concatenate([values.view(np.uint8), scales.view(np.uint8), sums.view(np.uint8)])
            np.testing.assert_array_equal(arm.read(q), expected)

        return check

    return case


def exponential() -> Case:
    def case(memory: Memory, rng: np.random.Generator) -> Check:
        x = np.concatenate([rng.uniform(-87, 88, 1008), np.zeros(8), np.full(8, -500.0)]).astype(np.float32)
        out = memory.reserve(x.shape, np.float32)
        memory.call("exponential", memory.place(x).address, x.size, out.address)

        def check(arm: Result, here: Result) -> None:
            expected = np.exp(np.clip(x.astype(np.float64), -87, 88))
            assert np.max(np.abs(arm.read(out) / expected - 1)) < 2e-7
            assert np.all(arm.read(out)[-16:-8] == 1)
            same_bits(out)(arm, here)

        return check

    return case


def attention(heads: int, kv_heads: int, head_dim: int, position: int, tokens: int, slots: int) -> Case:
    """Write a cache of random keys and values token by token, attend, merge; softmax in float64 is the reference.

    slots > 1: one token, each chunk of its cache in a slot of its own, as threads do it.
    """

    def case(memory: Memory, rng: np.random.Generator) -> Check:
        total = position + tokens
        length = -(-total // abi.KV_BLOCK) * abi.KV_BLOCK
        width = (heads + 2 * kv_heads) * head_dim
        qkv = rng.normal(size=(total, width)).astype(np.float32)
        angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(head_dim // 2) * 2 / head_dim)
        n_slots = abi.partial_slots(length)
        context = np.zeros(abi.CONTEXT_WORDS, np.int64)
        layer = np.zeros(abi.LAYER_WORDS, np.int64)
        cache = memory.place(np.zeros((2, kv_heads * length * head_dim), np.float16))
        layer[abi.KEYS], layer[abi.VALUES] = cache.address, cache.address + cache.nbytes // 2
        context[abi.N_HEADS], context[abi.N_KV_HEADS], context[abi.HEAD_DIM] = heads, kv_heads, head_dim
        context[abi.CONTEXT_LENGTH] = length
        context[abi.QKV], context[abi.QKV_STRIDE] = memory.place(qkv).address, width
        context[abi.COSINES] = memory.place(np.cos(angles).astype(np.float32)).address
        context[abi.SINES] = memory.place(np.sin(angles).astype(np.float32)).address
        context[abi.PARTIAL] = memory.reserve((n_slots, heads, head_dim), np.float32).address
        context[abi.PARTIAL_STATE] = memory.reserve((n_slots, heads, 2), np.float32).address
        context[abi.ATTENTION_SCALE_BITS] = int(np.float32(1 / math.sqrt(head_dim)).view(np.int32))
        scratch = memory.reserve((abi.scratch_bytes(64, 64, heads, kv_heads, head_dim),), np.uint8)
        at = memory.place(context).address
        layer_at = memory.place(layer).address
        out = memory.reserve((tokens, heads * head_dim), np.float32)
        for token in range(total):
            memory.call("write_keys_values", at, layer_at, token, 0, kv_heads)
        # from here on, token 0 of the step is the one at `position`
        memory.call("poke", at + 8 * abi.POSITION, position)
        memory.call("poke", at + 8 * abi.QKV, int(context[abi.QKV]) + position * 4 * width)
        chunk = abi.KV_BLOCK * abi.CHUNK_BLOCKS
        chunks = (total - 1) // chunk + 1
        for head in range(kv_heads):
            if slots == 1:
                for first in range(0, tokens, abi.QUERY_BLOCK):
                    last = min(tokens, first + abi.QUERY_BLOCK)
                    seen = (position + last - 1) // chunk + 1
                    memory.call("attend", at, layer_at, head, first, last, 0, seen, 0, 1, scratch.address)
            else:
                for slot in range(chunks):
                    memory.call("attend", at, layer_at, head, 0, 1, slot, slot + 1, slot, 0, scratch.address)
        used = 1 if slots == 1 else chunks
        for token in range(tokens):
            memory.call("merge", at, token if slots == 1 else 0, used, out.address + token * 4 * heads * head_dim)

        def check(arm: Result, here: Result) -> None:
            expected = reference_attention(qkv, angles[:total], heads, kv_heads, head_dim)[position:]
            # float16 keys and values: an error of 2⁻¹¹ each
            assert normalized_error(arm.read(out), expected) < 1e-6
            same_bits(cache)(arm, here)
            same_bits(out)(arm, here)

        return check

    return case


def reference_attention(qkv: np.ndarray, angles: np.ndarray, heads: int, kv_heads: int, head_dim: int) -> np.ndarray:
    """Causal attention with rotary embedding in float64: [tokens, heads · head_dim]."""
    total = qkv.shape[0]
    parts = qkv.astype(np.float64).reshape(total, heads + 2 * kv_heads, head_dim)
    cosine, sine = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]

    def rotate(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    queries = rotate(parts[:, :heads])
    keys = np.repeat(rotate(parts[:, heads : heads + kv_heads]), heads // kv_heads, axis=1)
    values = np.repeat(parts[:, heads + kv_heads :], heads // kv_heads, axis=1)
    scores = np.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(head_dim)
    scores[:, np.triu(np.ones((total, total), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    result: np.ndarray = np.einsum("hqk,khd->qhd", weights, values).reshape(total, heads * head_dim)
    return result


def all_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for bits in WEIGHT_BITS:
        for shape in SHAPES:
            name = "x".join(map(str, shape))
            for tokens in (1, 3, 4, 9):
                cases[f"linear-w{bits}a8-{name}-{tokens}"] = int8_linear(bits, shape, tokens)
            for tokens in (1, 6):
                cases[f"linear-w{bits}a32-{name}-{tokens}"] = float_linear(bits, shape, tokens)
        for top, sign in EXTREMES:
            for tokens in (1, 4):
                ends = f"{'top' if top else 'bottom'}{sign:+d}"
                cases[f"extreme-w{bits}a8-{ends}-{tokens}"] = extreme_linear(bits, top, sign, tokens)
        for activations in ("a8", "a32"):
            for tokens in (1, 5):
                cases[f"gated-w{bits}{activations}-{tokens}"] = gated_linear(bits, activations, tokens)
    for width in (32, 576, 4096):
        cases[f"rms-norm-{width}"] = rms_norm(width)
    for width, group_size in ((32, 32), (576, 64), (1536, 128), (192, 96)):
        cases[f"quantize-row-{width}-{group_size}"] = quantize_row(width, group_size)
    cases["exponential"] = exponential()
    for heads, kv_heads, head_dim, position, tokens, slots in (
        (4, 4, 64, 0, 1, 1),
        (6, 2, 32, 31, 1, 1),
        (9, 3, 64, 100, 1, 3),
        (4, 1, 48, 200, 1, 4),
        (3, 3, 64, 0, 37, 1),
        (6, 2, 32, 29, 13, 1),
    ):
        shape = f"{heads}-{kv_heads}-{head_dim}"
        cases[f"attention-{shape}-at{position}-{tokens}-{slots}"] = attention(
            heads, kv_heads, head_dim, position, tokens, slots
        )
    return cases
