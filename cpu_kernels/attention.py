"""Attention over a block-transposed KV cache (`kv_cache`), flash-style, and the rotary embedding of the queries.

One feature of 32 neighbouring positions is one vector, so a score needs no sum across lanes. A block is widened to
float32 once and used by every query head of its group and by up to QUERY_BLOCK tokens. Softmax runs online (running
maximum and sum), so a thread can take any range of blocks; partial results are merged afterwards.
Source: Dao et al., FlashAttention (2022), algorithm 1; Flash-Decoding (2023) for the split over the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types

from cpu_kernels import abi
from cpu_kernels.elementwise import make_exponential
from cpu_kernels.isa_ops import OPTIONS
from cpu_kernels.kv_cache import BLOCK, BLOCK_F32, FEATURES, make_cache_kernels
from cpu_kernels.vectors import (
    Vector,
    float_of_bits,
    fma,
    load,
    mul,
    reduce_add,
    reduce_max,
    splat,
    store,
    sub,
    zero,
)

_LOWEST = np.float32(-1e30)  # instead of -inf: the difference of two of them is 0, not NaN


@dataclass(frozen=True)
class AttentionKernels:
    """write_keys_values(context, layer, token, KV heads);

    attend(context, layer, kv head, tokens, chunks, slot rule, scratch);
    merge(context, token, first slot, slots, out).
    """

    write_keys_values: Callable[..., Any]
    attend: Callable[..., Any]
    merge: Callable[..., Any]


def make_attention_kernels(cache: str) -> AttentionKernels:
    """Attention over a cache of "i8", "f16" or "f32" elements; head_dim must be a multiple of 16."""
    access = make_cache_kernels(cache)
    widen_block = access.widen_block
    block_f32, part_f32 = Vector("f32", BLOCK), Vector("f32", FEATURES)
    exponential = make_exponential(BLOCK)
    exponential8 = make_exponential(8)
    scalar_kind = Vector("f32", 8)

    @njit(**OPTIONS)
    def exponential_scalar(value):
        return reduce_max(exponential8(splat(scalar_kind, value)))

    @njit(**OPTIONS)
    def field(context, word):
        return load(types.int64, context + 8 * word)

    @njit(**OPTIONS)
    def rotate_queries(context, kv_head, first, last, out):
        """Rotated and scaled queries of tokens first … last - 1: float32 [token, query head of the group, head_dim]."""
        head_dim = field(context, abi.HEAD_DIM)
        half = head_dim // 2
        group = field(context, abi.N_HEADS) // field(context, abi.N_KV_HEADS)
        scale = float_of_bits(types.int32(field(context, abi.ATTENTION_SCALE_BITS)))
        for token in range(first, last):
            position = field(context, abi.POSITION) + token
            cosines = field(context, abi.COSINES) + 4 * position * half
            sines = field(context, abi.SINES) + 4 * position * half
            row = field(context, abi.QKV) + 4 * token * field(context, abi.QKV_STRIDE) + 4 * kv_head * group * head_dim
            for head in range(group):
                source = row + 4 * head * head_dim
                for i in range(half):
                    a = load(types.float32, source + 4 * i) * scale
                    b = load(types.float32, source + 4 * (i + half)) * scale
                    cosine = load(types.float32, cosines + 4 * i)
                    sine = load(types.float32, sines + 4 * i)
                    store(out + 4 * i, a * cosine - b * sine)
                    store(out + 4 * (i + half), b * cosine + a * sine)
                out += 4 * head_dim

    def make_sum_values(kind: Vector) -> tuple[Any, Any]:
        """out · keep + Σ weight · value, for as many features as `kind` has: for one query, and for two."""

        @njit(**OPTIONS)
        def sum_values(out, keep, positions, values, row_bytes, scores):
            sums = mul(load(kind, out), splat(kind, keep))
            for j in range(positions):
                weight = splat(kind, load(types.float32, scores + 4 * j))
                sums = fma(weight, load(kind, values + j * row_bytes), sums)
            store(out, sums)

        @njit(**OPTIONS)
        def sum_values2(out, next_row, keep0, keep1, positions, values, row_bytes, scores):
            sums0 = mul(load(kind, out), splat(kind, keep0))
            sums1 = mul(load(kind, out + next_row), splat(kind, keep1))
            for j in range(positions):
                value = load(kind, values + j * row_bytes)
                sums0 = fma(splat(kind, load(types.float32, scores + 4 * j)), value, sums0)
                sums1 = fma(splat(kind, load(types.float32, scores + BLOCK_F32 + 4 * j)), value, sums1)
            store(out, sums0)
            store(out + next_row, sums1)

        return sum_values, sum_values2

    # 32 features are 8 chains of multiply-adds on a 128-bit machine: enough to hide their latency
    sum_values, sum_values2 = make_sum_values(part_f32)
    sum_values_wide, sum_values_wide2 = make_sum_values(Vector("f32", 2 * FEATURES))

    @njit(**OPTIONS)
    def weigh(score, positions, scores, state):
        """Online softmax: scores of a block → weights at `scores`, state (maximum, sum); what to keep of the sums."""
        if positions < BLOCK:
            store(scores, score)
            for j in range(positions, BLOCK):
                store(scores + 4 * j, _LOWEST)
            score = load(block_f32, scores)
        before = load(types.float32, state)
        top = max(before, reduce_max(score))
        weights = exponential(sub(score, splat(block_f32, top)))
        keep = exponential_scalar(before - top)
        store(scores, weights)
        total = np.float32(0)
        if positions < BLOCK:
            for j in range(positions):
                total += load(types.float32, scores + 4 * j)
        else:
            total = reduce_add(weights)
        store(state, top)
        store(state + 4, load(types.float32, state + 4) * keep + total)
        return keep

    @njit(**OPTIONS)
    def attend_block(query, head_dim, positions, keys, values, scores, out, state):
        """One block for one query: out [head_dim] and state (maximum, sum) are updated."""
        score = zero(block_f32)
        for i in range(head_dim):
            feature = splat(block_f32, load(types.float32, query + 4 * i))
            score = fma(feature, load(block_f32, keys + BLOCK_F32 * i), score)
        keep = weigh(score, positions, scores, state)
        i = 0
        while i + 2 * FEATURES <= head_dim:
            sum_values_wide(out + 4 * i, keep, positions, values + 4 * i, 4 * head_dim, scores)
            i += 2 * FEATURES
        if i < head_dim:
            sum_values(out + 4 * i, keep, positions, values + 4 * i, 4 * head_dim, scores)

    @njit(**OPTIONS)
    def attend_block2(query, head_dim, positions, keys, values, scores, out, state):
        """The same for two queries that follow each other: keys and values are loaded once for both.

        One query's 32 scores are 4 chains on a 256-bit machine, too few to hide the latency of a multiply-add.
        """
        next_row = 4 * head_dim
        score0, score1 = zero(block_f32), zero(block_f32)
        for i in range(head_dim):
            key = load(block_f32, keys + BLOCK_F32 * i)
            score0 = fma(splat(block_f32, load(types.float32, query + 4 * i)), key, score0)
            score1 = fma(splat(block_f32, load(types.float32, query + next_row + 4 * i)), key, score1)
        keep0 = weigh(score0, positions, scores, state)
        keep1 = weigh(score1, positions, scores + BLOCK_F32, state + 8)
        i = 0
        while i + 2 * FEATURES <= head_dim:
            sum_values_wide2(out + 4 * i, next_row, keep0, keep1, positions, values + 4 * i, next_row, scores)
            i += 2 * FEATURES
        if i < head_dim:
            sum_values2(out + 4 * i, next_row, keep0, keep1, positions, values + 4 * i, next_row, scores)

    @njit(**OPTIONS)
    def clear(out, state, head_dim):
        store(state, _LOWEST)
        store(state + 4, np.float32(0))
        for i in range(0, head_dim, FEATURES):
            store(out + 4 * i, zero(part_f32))

    @njit(**OPTIONS)
    def fold(out, before, total, part, part_state, head_dim):
        """Add the partial result of a later chunk to that of the chunks before it: → running maximum and sum."""
        later = load(types.float32, part_state)
        top = max(before, later)
        keep, weight = exponential_scalar(before - top), exponential_scalar(later - top)
        total = total * keep + load(types.float32, part_state + 4) * weight
        kept, weights = splat(part_f32, keep), splat(part_f32, weight)
        for i in range(0, head_dim, FEATURES):
            store(out + 4 * i, fma(load(part_f32, part + 4 * i), weights, mul(load(part_f32, out + 4 * i), kept)))
        return top, total

    @njit(error_model="numpy")
    def attend(context, layer, kv_head, first, last, first_chunk, last_chunk, slot, slot_per_token, scratch):
        """Queries of tokens first … last - 1 over chunks first_chunk … last_chunk - 1, into partial results.

        A chunk is CHUNK_BLOCKS blocks. Each one is summed up by itself and then folded into what came before it, so
        the result has the same bits however the chunks are distributed, and for one token as for many.
        The result of a token goes to slot + slot_per_token * token.
        """
        head_dim = field(context, abi.HEAD_DIM)
        heads = field(context, abi.N_HEADS)
        group = heads // field(context, abi.N_KV_HEADS)
        rows = (last - first) * group
        keys = scratch
        values = keys + 4 * BLOCK * head_dim
        scores = values + 4 * BLOCK * head_dim
        queries = scores + 2 * BLOCK_F32
        parts = queries + 4 * rows * head_dim  # float32 [rows, head_dim]
        part_states = parts + 4 * rows * head_dim  # float32 [rows, 2]
        rotate_queries(context, kv_head, first, last, queries)
        partial, partial_states = field(context, abi.PARTIAL), field(context, abi.PARTIAL_STATE)
        position = field(context, abi.POSITION)
        for chunk in range(first_chunk, last_chunk):
            for row in range(rows):
                clear(parts + 4 * row * head_dim, part_states + 8 * row, head_dim)
            for block in range(chunk * abi.CHUNK_BLOCKS, (chunk + 1) * abi.CHUNK_BLOCKS):
                start = block * BLOCK
                # positions of the block that the last token sees; earlier tokens see fewer
                seen = min(BLOCK, position + last - start)
                if seen <= 0:
                    break
                widen_block(context, layer, kv_head, block, seen, keys, values)
                # the first token that sees any of the block; from there on rows go in pairs that see as much
                row = max(types.int64(0), start - position - first) * group
                while row < rows:
                    visible = min(BLOCK, position + first + row // group + 1 - start)
                    query, out = queries + 4 * row * head_dim, parts + 4 * row * head_dim
                    state = part_states + 8 * row
                    both = min(BLOCK, position + first + (row + 1) // group + 1 - start) == visible
                    if row + 1 < rows and both:
                        attend_block2(query, head_dim, visible, keys, values, scores, out, state)
                        row += 2
                    else:
                        attend_block(query, head_dim, visible, keys, values, scores, out, state)
                        row += 1
            for token in range(first, last):
                if position + token < chunk * abi.CHUNK_BLOCKS * BLOCK:
                    continue  # the chunk lies behind this token
                at = (slot + slot_per_token * token) * heads + kv_head * group
                for head in range(group):
                    row = (token - first) * group + head
                    out, state = partial + 4 * (at + head) * head_dim, partial_states + 8 * (at + head)
                    part, part_state = parts + 4 * row * head_dim, part_states + 8 * row
                    if chunk == first_chunk:
                        clear(out, state, head_dim)
                    before, total = load(types.float32, state), load(types.float32, state + 4)
                    before, total = fold(out, before, total, part, part_state, head_dim)
                    store(state, before)
                    store(state + 4, total)

    @njit(error_model="numpy")
    def merge(context, first_slot, slots, out):
        """Fold the partial results of one token, in order: float32 [heads, head_dim] at `out`."""
        head_dim = field(context, abi.HEAD_DIM)
        heads = field(context, abi.N_HEADS)
        for head in range(heads):
            first = first_slot * heads + head
            partial, state = field(context, abi.PARTIAL), field(context, abi.PARTIAL_STATE)
            top = load(types.float32, state + 8 * first)
            total = load(types.float32, state + 8 * first + 4)
            for i in range(0, head_dim, FEATURES):
                store(out + 4 * i, load(part_f32, partial + 4 * (first * head_dim + i)))
            for slot in range(first_slot + 1, first_slot + slots):
                at = slot * heads + head
                top, total = fold(out, top, total, partial + 4 * at * head_dim, state + 8 * at, head_dim)
            scale = splat(part_f32, np.float32(1) / total)
            for i in range(0, head_dim, FEATURES):
                store(out + 4 * i, mul(load(part_f32, out + 4 * i), scale))
            out += 4 * head_dim

    return AttentionKernels(access.write_keys_values, attend, merge)
