"""The contract between the native decoder and whoever calls it: int64 words in memory, by position.

A *context* is an int64 array; addresses are byte addresses of memory that the caller owns. No pointer is kept beyond
a call. The runtime checks `ABI_VERSION` against the bundle before it calls anything.

This module imports nothing, so that a device can use it.
"""

from __future__ import annotations

ABI_VERSION = 4

# Positions in the context, in int64 words.
N_THREADS = 0
N_LAYERS = 1
HIDDEN_SIZE = 2
INTERMEDIATE_SIZE = 3
N_HEADS = 4
N_KV_HEADS = 5
HEAD_DIM = 6
CONTEXT_LENGTH = 7  # a multiple of KV_BLOCK
EPS_BITS = 8  # float32 bits of the norm's epsilon
N_TOKENS = 9  # tokens of this step, 1 … MAX_TOKENS
POSITION = 10  # of the first of them
LOGITS_MODE = 11  # one of LOGITS_*
TOKENS = 12  # address: int32 [N_TOKENS]
LAYERS = 13  # address: int64 [N_LAYERS, LAYER_WORDS]
EMBED = 14  # address: linear descriptor
HEAD = 15  # address: linear descriptor
FINAL_NORM = 16  # address: float32 [HIDDEN_SIZE]
COSINES = 17  # address: float32 [CONTEXT_LENGTH, HEAD_DIM / 2]
SINES = 18  # address: the same shape
RESIDUAL = 19  # address: float32 [MAX_TOKENS, HIDDEN_SIZE]
QKV = 20  # address: float32 [MAX_TOKENS, QKV_STRIDE]
QKV_STRIDE = 21  # floats
GATED = 22  # address: float32 [MAX_TOKENS, GATED_STRIDE]
GATED_STRIDE = 23  # floats
LOGITS = 24  # address: float32 [rows, LOGITS_STRIDE]
LOGITS_STRIDE = 25  # floats
ROWS = 26  # address: activation rows shared by the threads, [MAX_TOKENS, ROW_BYTES]
ROW_BYTES = 27
SCRATCH = 28  # address: private memory of the threads, [N_THREADS, SCRATCH_BYTES]
SCRATCH_BYTES = 29
PARTIAL = 30  # address: float32 [slots, N_HEADS, HEAD_DIM]; a slot for each chunk of the context, at least MAX_TOKENS
PARTIAL_STATE = 31  # address: float32 [slots, N_HEADS, 2]: running maximum, running sum
SYNC = 32  # address: int32 words, see SYNC_*
ATTENTION_SCALE_BITS = 33  # float32 bits of 1 / sqrt(head_dim)
SPIN_LIMIT = 34  # pauses before a waiting thread sleeps
KV_BITS = 35  # 8: int8 with scales, 16: float16; the float decoder has float32 whatever this says
TRACE = 36  # address: int64 [N_THREADS, TRACE_WORDS], 0 for none; older objects take no notice of it
CONTEXT_WORDS = 40

# Words of one thread's trace: where the time of its steps goes. The caller clears it; steps add up.
TRACE_FIRST = 0  # counter at the start of the last step
TRACE_LAST = 1  # counter at its end
TRACE_TICKS = 8  # [TRACE_KINDS]: counter ticks by kind of operation
TRACE_CALLS = 24  # [TRACE_KINDS]
TRACE_WORDS = 40
# Kinds of operations; what a thread does between two marks is of the second one's kind.
TRACED_EMBEDDING = 0
TRACED_NORM = 1  # and the quantized row
TRACED_QKV = 2
TRACED_ATTENTION = 3  # with the new keys and values
TRACED_MERGE = 4  # and the quantized row
TRACED_O = 5
TRACED_GATE_UP = 6
TRACED_QUANTIZE = 7
TRACED_DOWN = 8
TRACED_HEAD = 9
TRACED_BARRIER = 10
TRACE_KINDS = 11

# Logits of a step: none, after its last token, after every token.
LOGITS_NONE = 0
LOGITS_LAST = 1
LOGITS_ALL = 2

# Words of one layer.
INPUT_NORM = 0  # address: float32 [HIDDEN_SIZE]
POST_NORM = 1  # address: float32 [HIDDEN_SIZE]
LAYER_QKV = 2  # four linear descriptors follow, LINEAR_WORDS each
LAYER_O = 10
LAYER_GATE_UP = 18
LAYER_DOWN = 26
KEYS = 34  # address: cache elements [N_KV_HEADS, CONTEXT_LENGTH / KV_BLOCK, HEAD_DIM, KV_BLOCK]
VALUES = 35  # address: cache elements [N_KV_HEADS, CONTEXT_LENGTH, HEAD_DIM]
KEY_SCALES = 36  # address: float32 [N_KV_HEADS, CONTEXT_LENGTH], for an int8 cache
VALUE_SCALES = 37  # address: the same shape
LAYER_WORDS = 38

# Words of a linear descriptor.
WEIGHTS = 0  # address of the first record
OUT_FEATURES = 1
IN_FEATURES = 2
GROUP_SIZE = 3
BITS = 4
BIAS = 5  # address: float32 [OUT_FEATURES], 0 where there is none
LINEAR_WORDS = 8

# int32 words of the synchronisation area, each on a cache line of its own (16 words apart).
SYNC_ARRIVED = 0
SYNC_GENERATION = 16
SYNC_SLEEPERS = 32
SYNC_QUIT = 48
SYNC_TICKETS = 64  # parts of the present operation that are taken; 0 again after each barrier
# Each thread has a line of its own: thread t's is at SYNC_WORK + SYNC_WORK_STRIDE · t. It waits for the first word of
# it, the number of steps it was called to, to change; the second counts who sleeps there.
SYNC_WORK = 80
SYNC_WORK_STRIDE = 16
MAX_THREADS = 64
SYNC_WORDS = SYNC_WORK + SYNC_WORK_STRIDE * MAX_THREADS

# What the KV cache may hold, by kind of activations: bits → element. The first one is the usual one.
CACHE_ELEMENTS = {"int8": {16: "f16", 8: "i8"}, "float": {32: "f32"}}

MAX_TOKENS = 64  # tokens of one step
KV_BLOCK = 32  # positions that attention takes at a time
CHUNK_BLOCKS = 2  # blocks of a chunk; chunks are summed up by themselves and folded in order, whoever computed them
QUERY_BLOCK = 8  # tokens whose queries share one pass over the keys


def zero_bits(bits: int) -> int:
    """Bits of a zero point of `bits`-wide weights: narrow ones take a nibble too, so that all are unpacked alike."""
    return max(bits, 4)


def partial_slots(context_length: int) -> int:
    """Slots for partial results: one for each chunk of one token's context, or one for each token of a step."""
    return max(MAX_TOKENS, -(-context_length // (CHUNK_BLOCKS * KV_BLOCK)))


def activation_row_bytes(in_features: int) -> int:
    """Bytes of one activation row: int8 values, then per group scale and sum; or float32 values. A multiple of 64.

    Room for the smallest group (32): in_features + in_features / 32 * 8, and for in_features * 4.
    """
    return -(-in_features * 4 // 64) * 64 + 64


def scratch_bytes(hidden: int, intermediate: int, n_heads: int, n_kv_heads: int, head_dim: int) -> int:
    """Private bytes of one thread: a float and an activation row, or what attention needs for one chunk.

    The latter: keys, values and scores of a block, queries, and for each query its partial result.
    """
    widest = max(hidden, intermediate, n_heads * head_dim)
    rows = widest * 4 + 64 + activation_row_bytes(widest)
    queries = QUERY_BLOCK * (n_heads // n_kv_heads)
    attention = 4 * (2 * KV_BLOCK * head_dim + 2 * queries * head_dim + 2 * queries + 2 * KV_BLOCK) + 256
    return -(-(max(rows, attention) + 64) // 4096) * 4096
