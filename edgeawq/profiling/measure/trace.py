"""Where the time of native steps goes, by kind of operation, as the kernels' own marks say (`cpu_kernels.abi`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpu_kernels import abi
from edgeawq.profiling.schema import OperationKind
from edgeawq.runtime.decoder import Decoder

# In the order of abi.TRACED_*.
TRACED: tuple[OperationKind, ...] = (
    "embedding",
    "norm",
    "qkv",
    "attention",
    "merge",
    "o",
    "gate_up",
    "quantize",
    "down",
    "head",
    "barrier",
)


@dataclass(frozen=True)
class Marks:
    """Counter ticks and calls of each kind, mean of the threads, and the counter after the last mark."""

    ticks: npt.NDArray[np.float64]  # [abi.TRACE_KINDS]
    calls: npt.NDArray[np.float64]  # [abi.TRACE_KINDS]
    counter: int  # of thread 0

    def since(self, earlier: Marks) -> Marks:
        """What was added between two readings."""
        return Marks(self.ticks - earlier.ticks, self.calls - earlier.calls, self.counter)


class Tracer:
    """Switches a decoder's trace on and off, and reads it between steps."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._words = np.zeros((decoder.n_threads, abi.TRACE_WORDS), np.int64)

    def switch(self, on: bool) -> None:
        """The next step is traced, or not."""
        self._decoder.trace_into(self._words if on else None)

    def read(self) -> Marks:
        """All marks since the beginning."""
        kinds = slice(abi.TRACE_TICKS, abi.TRACE_TICKS + abi.TRACE_KINDS)
        calls = slice(abi.TRACE_CALLS, abi.TRACE_CALLS + abi.TRACE_KINDS)
        means = self._words.mean(axis=0)
        return Marks(means[kinds].copy(), means[calls].copy(), int(self._words[0, abi.TRACE_LAST]))

    @property
    def works(self) -> bool:
        """False when the kernels are older than tracing. Ask after a traced step."""
        return bool(self._words[0, abi.TRACE_LAST])
