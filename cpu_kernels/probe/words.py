"""The contract between the probe object and whoever calls it: words of its context, behind those of `cpu_kernels.abi`.

N_THREADS, SYNC and SPIN_LIMIT lie where the decoder has them: the threads and their barrier are the same code.
This module imports nothing, so that a device can use it.
"""

from __future__ import annotations

PROBE_ABI = 1

# Positions in the context, in int64 words.
OPERATION = 40  # one of the numbers below
REPEATS = 41  # passes over memory, rounds of a loop, meetings at the barrier
A = 42  # address: read, written by a fill and a triad
B = 43  # address: read by a triad, written by a copy
C = 44  # address: read by a triad
BYTES = 45  # of each array, for one thread: a multiple of BLOCK
STRIDE = 46  # bytes from one thread's part of an array to the next one's; for a touch, from one byte to the next
RESULTS = 47  # address: int64 [N_THREADS, RESULT_WORDS]
PROBE_WORDS = 48

# Words of a thread's result.
START = 0  # counter at the start of the operation
END = 1
WORK = 2  # bytes moved, operations, cycles or meetings; 0: this object has no such operation
CHECK = 3  # what the loop computed: it cannot be left out
RESULT_WORDS = 8  # a cache line

# Operations.
READ = 1  # A; WORK in bytes
COPY = 2  # A → B
TRIAD = 3  # A = B + 3 · C, float32
FILL = 4  # A = ones, float32
FP32 = 5  # multiply-adds in registers; WORK in operations
FP16 = 6
INT8_NIBBLES = 7  # A: WEIGHT_REGISTERS of weights, then 4 rows of activations
INT8_BYTES = 8
CHAIN = 9  # dependent additions; WORK in cycles
BARRIER = 10  # WORK in meetings
TOUCH_READ = 11  # one byte of every STRIDE of A; WORK in bytes touched
TOUCH_WRITE = 12
COUNTER = 13  # nothing between START and END

BLOCK = 1024  # bytes that the memory loops take at a time
WEIGHT_REGISTERS = 16
ROUND_REGISTERS = 8  # of them, that one round takes
ROW_BYTES = 64  # of activations; registers are taken from them as well
CHAIN_CYCLES = 64  # of one round
