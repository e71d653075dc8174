"""The KV cache: how keys and values of one position are written, and how a block of positions is read again.

Keys lie as [kv head, block, head_dim, KV_BLOCK]: a vector load takes one feature of 32 neighbouring positions. Values
lie as [kv head, position, head_dim]. Elements are float32, float16, or int8 with one float32 scale for the key and one
for the value of each head and position: 1 + 4 / head_dim bytes a feature instead of float16's 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types

from cpu_kernels import abi
from cpu_kernels.isa_ops import OPTIONS
from cpu_kernels.vectors import (
    Vector,
    absolute,
    convert,
    load,
    maximum,
    mul,
    reduce_max,
    round_even,
    splat,
    store,
    store_byte,
    store_half,
    zero,
)

BLOCK = abi.KV_BLOCK
BLOCK_F32 = 4 * BLOCK  # bytes
FEATURES = 16  # features that one step takes; head_dim is a multiple
_ELEMENT_BYTES = {"i8": 1, "f16": 2, "f32": 4}


@dataclass(frozen=True)
class CacheKernels:
    """write_keys_values(context, layer, token, first head, last head): rotate and keep the keys, keep the values.

    widen_block(context, layer, kv_head, block, positions, keys, values): one block as float32, all keys of it and
    `positions` values.
    """

    write_keys_values: Callable[..., Any]
    widen_block: Callable[..., Any]


def make_cache_kernels(cache: str) -> CacheKernels:
    """Access to a cache of "i8", "f16" or "f32" elements."""
    block_f32, block_cache = Vector("f32", BLOCK), Vector(cache, BLOCK)
    part_f32, part_i32, part_cache = Vector("f32", FEATURES), Vector("i32", FEATURES), Vector(cache, FEATURES)
    size = _ELEMENT_BYTES[cache]
    scaled = cache == "i8"
    store_element = {"i8": store_byte, "f16": store_half, "f32": store}[cache]

    @njit(**OPTIONS)
    def field(context, word):
        return load(types.int64, context + 8 * word)

    @njit(**OPTIONS)
    def find_scale(row, head_dim):
        """The scale that brings a row of float32 into -127 … 127; 1 where nothing is scaled."""
        if not scaled:
            return np.float32(1)
        largest = zero(part_f32)
        for i in range(0, head_dim, FEATURES):
            largest = maximum(absolute(load(part_f32, row + 4 * i)), largest)
        return reduce_max(largest) / np.float32(127)

    @njit(**OPTIONS)
    def invert(scale):
        if scale > np.float32(0):
            return np.float32(1) / scale
        return np.float32(0)

    @njit(**OPTIONS)
    def narrow(part):
        if scaled:
            return convert(part_cache, convert(part_i32, round_even(part)))
        return convert(part_cache, part)

    @njit(**OPTIONS)
    def put_scale(context, layer, word, head, position, scale):
        if scaled:
            at = head * field(context, abi.CONTEXT_LENGTH) + position
            store(load(types.int64, layer + 8 * word) + 4 * at, scale)

    @njit(**OPTIONS)
    def rotate(row, cosines, sines, half):
        """Rotary embedding of one head's float32 row, in place."""
        for i in range(half):
            first = load(types.float32, row + 4 * i)
            second = load(types.float32, row + 4 * (i + half))
            cosine = load(types.float32, cosines + 4 * i)
            sine = load(types.float32, sines + 4 * i)
            store(row + 4 * i, first * cosine - second * sine)
            store(row + 4 * (i + half), second * cosine + first * sine)

    @njit(error_model="numpy")
    def write_keys_values(context, layer, token, first_head, last_head):
        head_dim = field(context, abi.HEAD_DIM)
        half = head_dim // 2
        heads, kv_heads = field(context, abi.N_HEADS), field(context, abi.N_KV_HEADS)
        length = field(context, abi.CONTEXT_LENGTH)
        position = field(context, abi.POSITION) + token
        row = field(context, abi.QKV) + 4 * token * field(context, abi.QKV_STRIDE)
        cosines = field(context, abi.COSINES) + 4 * position * half
        sines = field(context, abi.SINES) + 4 * position * half
        for head in range(first_head, last_head):
            key = row + 4 * (heads + head) * head_dim
            rotate(key, cosines, sines, half)  # nobody else reads this part of the row
            scale = find_scale(key, head_dim)
            put_scale(context, layer, types.int64(abi.KEY_SCALES), head, position, scale)
            inverse = invert(scale)
            block = (head * (length // BLOCK) + position // BLOCK) * head_dim * BLOCK
            key_out = load(types.int64, layer + 8 * abi.KEYS) + size * (block + position % BLOCK)
            for i in range(head_dim):
                value = load(types.float32, key + 4 * i)
                if scaled:
                    value *= inverse
                store_element(key_out + size * BLOCK * i, value)

            row_of_values = row + 4 * (heads + kv_heads + head) * head_dim
            scale = find_scale(row_of_values, head_dim)
            put_scale(context, layer, types.int64(abi.VALUE_SCALES), head, position, scale)
            inverse = invert(scale)
            value_out = load(types.int64, layer + 8 * abi.VALUES) + size * (head * length + position) * head_dim
            for i in range(0, head_dim, FEATURES):
                part = load(part_f32, row_of_values + 4 * i)
                if scaled:
                    part = mul(part, splat(part_f32, inverse))
                store(value_out + size * i, narrow(part))

    @njit(**OPTIONS)
    def widen_block(context, layer, kv_head, block, positions, keys, values):
        head_dim = field(context, abi.HEAD_DIM)
        length = field(context, abi.CONTEXT_LENGTH)
        first = kv_head * length + block * BLOCK
        source = load(types.int64, layer + 8 * abi.KEYS)
        source += size * (kv_head * (length // BLOCK) + block) * head_dim * BLOCK
        if scaled:
            scales = load(block_f32, load(types.int64, layer + 8 * abi.KEY_SCALES) + 4 * first)
            for i in range(head_dim):
                feature = convert(block_f32, load(block_cache, source + BLOCK * i))
                store(keys + BLOCK_F32 * i, mul(feature, scales))
        else:
            for i in range(head_dim):
                store(keys + BLOCK_F32 * i, convert(block_f32, load(block_cache, source + size * BLOCK * i)))
        source = load(types.int64, layer + 8 * abi.VALUES) + size * first * head_dim
        if scaled:
            scale_at = load(types.int64, layer + 8 * abi.VALUE_SCALES) + 4 * first
            for position in range(positions):
                scale = splat(part_f32, load(types.float32, scale_at + 4 * position))
                for i in range(position * head_dim, (position + 1) * head_dim, FEATURES):
                    store(values + 4 * i, mul(convert(part_f32, load(part_cache, source + i)), scale))
        else:
            for i in range(0, positions * head_dim, FEATURES):
                store(values + 4 * i, convert(part_f32, load(part_cache, source + size * i)))

    return CacheKernels(write_keys_values, widen_block)
