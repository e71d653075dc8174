"""The whole decoder as one native function: forward(context, thread) runs one step, every thread its share.

A step takes 1 … MAX_TOKENS tokens. Work is split by output rows; threads meet at a barrier after every operation whose
result another thread reads (five times a layer). What is cheap (norm, quantization of one row, merging attention) every
thread does for itself into private memory; with many tokens it is split by token instead, for one barrier more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numba import njit, types

from cpu_kernels import abi
from cpu_kernels.attention import make_attention_kernels
from cpu_kernels.counter import make_counter
from cpu_kernels.elementwise import RowKernels, make_row_kernels
from cpu_kernels.isa_ops import OPTIONS, IsaOps, RecordKernels
from cpu_kernels.record_kernels import make_record_kernels
from cpu_kernels.threads import ThreadKernels, make_thread_kernels
from cpu_kernels.vectors import add, convert, float_of_bits, load, load_nibbles, store, widen_unsigned

_STORE, _ADD = 0, 1  # what a linear layer does with its result


def make_linear_layer(ops: IsaOps, bits: int, activations: str) -> tuple[Any, Any]:
    """(linear, gated) for weights of `bits`: records first … last - 1 of a layer on `tokens` activation rows."""
    kernels: RecordKernels = make_record_kernels(ops, bits, activations)
    dot1, dot4 = kernels.dot1, kernels.dot4
    silu_multiply = make_row_kernels(ops).silu_multiply
    lanes, f32 = ops.lanes, ops.f32
    register = 4 * lanes
    point_bits = abi.zero_bits(bits)

    @njit(**OPTIONS)
    def shape(descriptor):
        columns = load(types.int64, descriptor + 8 * abi.IN_FEATURES)
        group_size = load(types.int64, descriptor + 8 * abi.GROUP_SIZE)
        groups = columns // group_size
        zeros = groups * lanes * 2
        weights = (zeros + groups * lanes * point_bits // 8 + 63) // 64 * 64
        return columns, group_size, groups, zeros, weights, weights + columns * lanes * bits // 8

    @njit(**OPTIONS)
    def put(value, bias, row, out, mode):
        if bias != 0:
            value = add(value, load(f32, bias + 4 * row))
        address = out + 4 * row
        if mode == _ADD:
            value = add(value, load(f32, address))
        store(address, value)

    @njit(error_model="numpy")
    def linear(descriptor, mode, x, x_stride, out, out_stride, tokens, first, last):
        columns, group_size, groups, zeros, weights, record_bytes = shape(descriptor)
        bias = load(types.int64, descriptor + 8 * abi.BIAS)
        for index in range(first, last):
            record = load(types.int64, descriptor + 8 * abi.WEIGHTS) + index * record_bytes
            row = index * lanes
            token = 0
            while token + 4 <= tokens:
                a, b, c, d = dot4(record, zeros, weights, groups, group_size, columns, x + token * x_stride, x_stride)
                here = out + token * out_stride
                put(a, bias, row, here, mode)
                put(b, bias, row, here + out_stride, mode)
                put(c, bias, row, here + 2 * out_stride, mode)
                put(d, bias, row, here + 3 * out_stride, mode)
                token += 4
            while token < tokens:
                value = dot1(record, zeros, weights, groups, group_size, columns, x + token * x_stride)
                put(value, bias, row, out + token * out_stride, mode)
                token += 1

    @njit(error_model="numpy")
    def gated(descriptor, x, x_stride, out, out_stride, tokens, first, last):
        """SiLU(gate) · up for record pairs first … last - 1; the layer's bias holds gate's rows, then up's."""
        columns, group_size, groups, zeros, weights, record_bytes = shape(descriptor)
        bias = load(types.int64, descriptor + 8 * abi.BIAS)
        up_bias = bias + 2 * load(types.int64, descriptor + 8 * abi.OUT_FEATURES)
        for index in range(first, last):
            gate = load(types.int64, descriptor + 8 * abi.WEIGHTS) + 2 * index * record_bytes
            up = gate + record_bytes
            at = index * register
            token = 0
            while token + 4 <= tokens:
                here = x + token * x_stride
                g0, g1, g2, g3 = dot4(gate, zeros, weights, groups, group_size, columns, here, x_stride)
                u0, u1, u2, u3 = dot4(up, zeros, weights, groups, group_size, columns, here, x_stride)
                if bias != 0:
                    g = load(f32, bias + at)
                    u = load(f32, up_bias + at)
                    g0, g1, g2, g3 = add(g0, g), add(g1, g), add(g2, g), add(g3, g)
                    u0, u1, u2, u3 = add(u0, u), add(u1, u), add(u2, u), add(u3, u)
                target = out + token * out_stride + at
                store(target, silu_multiply(g0, u0))
                store(target + out_stride, silu_multiply(g1, u1))
                store(target + 2 * out_stride, silu_multiply(g2, u2))
                store(target + 3 * out_stride, silu_multiply(g3, u3))
                token += 4
            while token < tokens:
                here = x + token * x_stride
                g0 = dot1(gate, zeros, weights, groups, group_size, columns, here)
                u0 = dot1(up, zeros, weights, groups, group_size, columns, here)
                if bias != 0:
                    g0 = add(g0, load(f32, bias + at))
                    u0 = add(u0, load(f32, up_bias + at))
                store(out + token * out_stride + at, silu_multiply(g0, u0))
                token += 1

    return linear, gated


def choose_by_bits(functions: dict[int, Any]) -> Any:
    """choose(bits, arguments) calls the function for `bits`, else the last one; the runtime has checked the bits."""
    (bits, function), *others = functions.items()
    if not others:

        @njit(**OPTIONS)
        def last(wanted, arguments):
            function(*arguments)

        return last
    rest = choose_by_bits(dict(others))

    @njit(**OPTIONS)
    def choose(wanted, arguments):
        if wanted == bits:
            function(*arguments)
        else:
            rest(wanted, arguments)

    return choose


def make_embedding_row(ops: IsaOps) -> Any:
    """embedding_row(descriptor, token id, out): one row of a 2- to 8-bit table as float32."""
    lanes = ops.lanes
    f32, f16, i8, i32 = ops.f32, ops.f16, ops.i8, ops.i32
    register = 4 * lanes

    @njit(error_model="numpy")
    def word(address, shift, mask):
        return (load(types.uint32, address) >> types.uint32(shift)) & types.uint32(mask)

    @njit(error_model="numpy")
    def weight(address, column, bits):
        """One weight of the lane whose first word is at `address`."""
        byte = 8 * (column % 4)
        if bits == 3:
            at = column % 32
            block = address + column // 32 * 3 * register
            low = word(block + at // 16 * register, byte + 2 * (at % 16 // 4), 3)
            return low | word(block + 2 * register, byte + at // 4, 1) << types.uint32(2)
        values = 32 // bits
        return word(address + column // values * register, byte + bits * (column % values // 4), (1 << bits) - 1)

    @njit(error_model="numpy")
    def embedding_row(descriptor, row, scratch, out):
        bits = load(types.int64, descriptor + 8 * abi.BITS)
        columns = load(types.int64, descriptor + 8 * abi.IN_FEATURES)
        group_size = load(types.int64, descriptor + 8 * abi.GROUP_SIZE)
        groups = columns // group_size
        zeros = groups * lanes * 2
        weights = (zeros + groups * lanes * max(bits, types.int64(4)) // 8 + 63) // 64 * 64
        record = load(types.int64, descriptor + 8 * abi.WEIGHTS)
        record += row // lanes * (weights + columns * lanes * bits // 8)
        lane = row % lanes
        for group in range(groups):
            # the constants of all lanes go through memory; only one lane's are wanted
            store(scratch, convert(f32, load(f16, record + group * lanes * 2)))
            if bits < 8:
                points = load_nibbles(i32, record + zeros + group * lanes // 2)
            else:
                points = widen_unsigned(i32, load(i8, record + zeros + group * lanes))
            store(scratch + register, convert(f32, points))
            scale = load(types.float32, scratch + 4 * lane)
            zero_point = load(types.float32, scratch + register + 4 * lane)
            for column in range(group * group_size, (group + 1) * group_size):
                q = weight(record + weights + 4 * lane, column, bits)
                store(out + 4 * column, (types.float32(q) - zero_point) * scale)

    return embedding_row


@dataclass(frozen=True)
class CommonKernels:
    """What the decoders for int8 and for float activations share, so that an object holds it once."""

    rows: RowKernels
    embedding_row: Callable[..., Any]
    threads: ThreadKernels


def make_common_kernels(ops: IsaOps) -> CommonKernels:
    """The kernels that do not depend on the kind of activations."""
    return CommonKernels(make_row_kernels(ops), make_embedding_row(ops), make_thread_kernels(ops))


def make_forward(ops: IsaOps, common: CommonKernels, activations: str, weight_bits: Sequence[int]) -> Any:
    """forward(context, thread): "int8" activations, or "float", the exact path; a KV cache of `abi.CACHE_ELEMENTS`."""
    rows, embedding_row = common.rows, common.embedding_row
    # the usual one last: it is what `choose_by_bits` takes where nothing was said
    elements = reversed(abi.CACHE_ELEMENTS[activations].items())
    caches = {bits: make_attention_kernels(element) for bits, element in elements}
    write_keys_values = choose_by_bits({bits: kernels.write_keys_values for bits, kernels in caches.items()})
    attend = choose_by_bits({bits: kernels.attend for bits, kernels in caches.items()})
    merge = next(iter(caches.values())).merge
    rms_norm, quantize_row, copy_row = rows.rms_norm, rows.quantize_row, rows.copy_row
    barrier = common.threads.barrier
    read_counter = make_counter(ops.isa.machine)
    layers = {bits: make_linear_layer(ops, bits, activations) for bits in weight_bits}
    linear = choose_by_bits({bits: layer[0] for bits, layer in layers.items()})
    gated_linear = choose_by_bits({bits: layer[1] for bits, layer in layers.items()})
    lanes = ops.lanes
    quantized = activations == "int8"

    @njit(**OPTIONS)
    def field(context, word):
        return load(types.int64, context + 8 * word)

    @njit(**OPTIONS)
    def start_trace(context, thread):
        """The thread's trace, 0 for none."""
        trace = field(context, abi.TRACE)
        if trace != 0:
            trace += 8 * abi.TRACE_WORDS * thread
            now = read_counter()
            store(trace + 8 * abi.TRACE_FIRST, now)
            store(trace + 8 * abi.TRACE_LAST, now)
        return trace

    @njit(**OPTIONS)
    def mark(trace, kind):
        """What this thread did since its last mark was of this kind."""
        if trace != 0:
            now = read_counter()
            ticks, calls = trace + 8 * (abi.TRACE_TICKS + kind), trace + 8 * (abi.TRACE_CALLS + kind)
            passed = now - load(types.int64, trace + 8 * abi.TRACE_LAST)
            store(ticks, load(types.int64, ticks) + passed)
            store(calls, load(types.int64, calls) + types.int64(1))
            store(trace + 8 * abi.TRACE_LAST, now)

    @njit(error_model="numpy")
    def meet(context, trace):
        barrier(context)
        mark(trace, types.int64(abi.TRACED_BARRIER))

    @njit(**OPTIONS)
    def share(count, thread, threads):
        return count * thread // threads, count * (thread + 1) // threads

    @njit(**OPTIONS)
    def activate(x, width, group_size, out):
        if quantized:
            quantize_row(x, width, group_size, out)
        else:
            copy_row(x, width, out)

    @njit(**OPTIONS)
    def chunks_of(position):
        """Chunks of the cache that a token at `position` sees."""
        return position // (abi.KV_BLOCK * abi.CHUNK_BLOCKS) + 1

    @njit(**OPTIONS)
    def records(descriptor):
        return (load(types.int64, descriptor + 8 * abi.OUT_FEATURES) + lanes - 1) // lanes

    @njit(error_model="numpy")
    def run_linear(descriptor, mode, x, x_stride, out, out_stride, tokens, thread, threads):
        first, last = share(records(descriptor), thread, threads)
        bits = load(types.int64, descriptor + 8 * abi.BITS)
        linear(bits, (descriptor, mode, x, x_stride, out, out_stride, tokens, first, last))

    @njit(error_model="numpy")
    def run_gated(descriptor, x, x_stride, out, out_stride, tokens, thread, threads):
        # the descriptor counts the rows of gate and up together
        pairs = load(types.int64, descriptor + 8 * abi.OUT_FEATURES) // 2
        first, last = share((pairs + lanes - 1) // lanes, thread, threads)
        bits = load(types.int64, descriptor + 8 * abi.BITS)
        gated_linear(bits, (descriptor, x, x_stride, out, out_stride, tokens, first, last))

    @njit(error_model="numpy")
    def normed_rows(context, thread, norm, descriptor, first, last, target):
        """Norm and activation rows of tokens first … last - 1 of the residual stream, packed from `target` on."""
        width = field(context, abi.HIDDEN_SIZE)
        eps = float_of_bits(types.int32(field(context, abi.EPS_BITS)))
        group_size = load(types.int64, descriptor + 8 * abi.GROUP_SIZE)
        scratch = field(context, abi.SCRATCH) + thread * field(context, abi.SCRATCH_BYTES)
        for token in range(first, last):
            row = field(context, abi.RESIDUAL) + 4 * token * width
            rms_norm(row, norm, width, eps, scratch)
            activate(scratch, width, group_size, target + token * field(context, abi.ROW_BYTES))

    @njit(error_model="numpy")
    def float_rows(context, source, stride, width, descriptor, first, last, target):
        """Activation rows of float rows that lie in memory."""
        group_size = load(types.int64, descriptor + 8 * abi.GROUP_SIZE)
        for token in range(first, last):
            activate(source + token * stride, width, group_size, target + token * field(context, abi.ROW_BYTES))

    @njit(error_model="numpy")
    def merged_rows(context, thread, descriptor, first, last, slots, target):
        """Activation rows of the attention's merged result."""
        width = load(types.int64, descriptor + 8 * abi.IN_FEATURES)
        group_size = load(types.int64, descriptor + 8 * abi.GROUP_SIZE)
        scratch = field(context, abi.SCRATCH) + thread * field(context, abi.SCRATCH_BYTES)
        for token in range(first, last):
            merge(context, token if slots == 1 else types.int64(0), slots, scratch)
            activate(scratch, width, group_size, target + token * field(context, abi.ROW_BYTES))

    @njit(error_model="numpy")
    def run_attention(context, trace, layer, thread, threads, tokens):
        scratch = field(context, abi.SCRATCH) + thread * field(context, abi.SCRATCH_BYTES)
        position = field(context, abi.POSITION)
        kv_heads = field(context, abi.N_KV_HEADS)
        kv_bits = field(context, abi.KV_BITS)
        start = types.int64(0)  # a literal would make a copy of every kernel it is passed to
        if tokens == 1:
            # Units of one KV head and one chunk. Who has the last chunk writes that head's new key and value first.
            chunks = chunks_of(position)
            first, last = share(kv_heads * chunks, thread, threads)
            for unit in range(first, last):
                head, chunk = unit % kv_heads, unit // kv_heads
                if chunk == chunks - 1:
                    write_keys_values(kv_bits, (context, layer, start, head, head + 1))
                attend(kv_bits, (context, layer, head, start, start + 1, chunk, chunk + 1, chunk, start, scratch))
            return
        first, last = share(tokens, thread, threads)
        for token in range(first, last):
            write_keys_values(kv_bits, (context, layer, token, start, kv_heads))
        mark(trace, types.int64(abi.TRACED_ATTENTION))
        meet(context, trace)
        parts = (tokens + abi.QUERY_BLOCK - 1) // abi.QUERY_BLOCK
        for unit in range(thread, kv_heads * parts, threads):
            first = unit // kv_heads * abi.QUERY_BLOCK
            last = min(tokens, first + abi.QUERY_BLOCK)
            chunks = chunks_of(position + last - 1)
            attend(kv_bits, (context, layer, unit % kv_heads, first, last, start, chunks, start, start + 1, scratch))

    @njit(error_model="numpy")
    def run_layer(context, trace, layer, thread, threads, tokens):
        hidden = field(context, abi.HIDDEN_SIZE)
        intermediate = field(context, abi.INTERMEDIATE_SIZE)
        row_bytes = field(context, abi.ROW_BYTES)
        residual = field(context, abi.RESIDUAL)
        qkv, qkv_stride = field(context, abi.QKV), 4 * field(context, abi.QKV_STRIDE)
        gated, gated_stride = field(context, abi.GATED), 4 * field(context, abi.GATED_STRIDE)
        shared = tokens > 1
        # One token: every thread makes the row for itself. Many: each its share, for all.
        first, last = types.int64(0), types.int64(1)
        if shared:
            first, last = share(tokens, thread, threads)
        x = field(context, abi.ROWS)
        if not shared:
            x = field(context, abi.SCRATCH) + (thread + 1) * field(context, abi.SCRATCH_BYTES) - row_bytes
        slots = types.int64(1) if shared else chunks_of(field(context, abi.POSITION))

        descriptor = layer + 8 * abi.LAYER_QKV
        normed_rows(context, thread, load(types.int64, layer + 8 * abi.INPUT_NORM), descriptor, first, last, x)
        mark(trace, types.int64(abi.TRACED_NORM))
        if shared:
            meet(context, trace)
        run_linear(descriptor, types.int64(_STORE), x, row_bytes, qkv, qkv_stride, tokens, thread, threads)
        mark(trace, types.int64(abi.TRACED_QKV))
        meet(context, trace)
        run_attention(context, trace, layer, thread, threads, tokens)
        mark(trace, types.int64(abi.TRACED_ATTENTION))
        meet(context, trace)
        descriptor = layer + 8 * abi.LAYER_O
        merged_rows(context, thread, descriptor, first, last, slots, x)
        mark(trace, types.int64(abi.TRACED_MERGE))
        if shared:
            meet(context, trace)
        run_linear(descriptor, types.int64(_ADD), x, row_bytes, residual, 4 * hidden, tokens, thread, threads)
        mark(trace, types.int64(abi.TRACED_O))
        meet(context, trace)
        descriptor = layer + 8 * abi.LAYER_GATE_UP
        normed_rows(context, thread, load(types.int64, layer + 8 * abi.POST_NORM), descriptor, first, last, x)
        mark(trace, types.int64(abi.TRACED_NORM))
        if shared:
            meet(context, trace)
        run_gated(descriptor, x, row_bytes, gated, gated_stride, tokens, thread, threads)
        mark(trace, types.int64(abi.TRACED_GATE_UP))
        meet(context, trace)
        descriptor = layer + 8 * abi.LAYER_DOWN
        float_rows(context, gated, gated_stride, intermediate, descriptor, first, last, x)
        mark(trace, types.int64(abi.TRACED_QUANTIZE))
        if shared:
            meet(context, trace)
        run_linear(descriptor, types.int64(_ADD), x, row_bytes, residual, 4 * hidden, tokens, thread, threads)
        mark(trace, types.int64(abi.TRACED_DOWN))
        meet(context, trace)

    @njit(error_model="numpy")
    def forward(context, thread):
        threads = field(context, abi.N_THREADS)
        tokens = field(context, abi.N_TOKENS)
        trace = start_trace(context, thread)
        # Read here: after the step's last barrier thread 0 may already have written the next step's fields.
        mode = field(context, abi.LOGITS_MODE)
        hidden = field(context, abi.HIDDEN_SIZE)
        scratch = field(context, abi.SCRATCH) + thread * field(context, abi.SCRATCH_BYTES)
        first, last = share(tokens, thread, threads)
        for token in range(first, last):
            token_id = types.int64(load(types.int32, field(context, abi.TOKENS) + 4 * token))
            residual = field(context, abi.RESIDUAL) + 4 * token * hidden
            embedding_row(field(context, abi.EMBED), token_id, scratch, residual)
        mark(trace, types.int64(abi.TRACED_EMBEDDING))
        meet(context, trace)
        for index in range(field(context, abi.N_LAYERS)):
            layer = field(context, abi.LAYERS) + 8 * abi.LAYER_WORDS * index
            run_layer(context, trace, layer, thread, threads, tokens)
        if mode != abi.LOGITS_NONE:
            first = types.int64(0) if mode == abi.LOGITS_ALL else tokens - 1
            row_bytes = field(context, abi.ROW_BYTES)
            x = field(context, abi.ROWS)
            begin, end = share(tokens - first, thread, threads)
            normed_rows(
                context, thread, field(context, abi.FINAL_NORM), field(context, abi.HEAD), first + begin, first + end, x
            )
            mark(trace, types.int64(abi.TRACED_NORM))
            meet(context, trace)
            run_linear(
                field(context, abi.HEAD),
                types.int64(_STORE),
                x + first * row_bytes,
                row_bytes,
                field(context, abi.LOGITS),
                4 * field(context, abi.LOGITS_STRIDE),
                tokens - first,
                thread,
                threads,
            )
            mark(trace, types.int64(abi.TRACED_HEAD))
            meet(context, trace)

    return forward
