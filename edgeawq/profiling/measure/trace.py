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
    """The trace's words, int64 [threads, abi.TRACE_WORDS], as they were at one moment or between two."""

    words: npt.NDArray[np.int64]

    @property
    def ticks(self) -> npt.NDArray[np.float64]:
        """Counter ticks of each kind, mean of the threads: [abi.TRACE_KINDS]."""
        return self._mean(abi.TRACE_TICKS)

    @property
    def calls(self) -> npt.NDArray[np.float64]:
        """Marks of each kind, mean of the threads: [abi.TRACE_KINDS]."""
        return self._mean(abi.TRACE_CALLS)

    @property
    def counter(self) -> int:
        """The counter after thread 0's last mark; of a difference, the counter's progress."""
        return int(self.words[0, abi.TRACE_LAST])

    def since(self, earlier: Marks) -> Marks:
        """What was added between two readings."""
        return Marks(self.words - earlier.words)

    def _mean(self, first: int) -> npt.NDArray[np.float64]:
        mean: npt.NDArray[np.float64] = self.words[:, first : first + abi.TRACE_KINDS].mean(axis=0)
        return mean


class Tracer:
    """Switches a decoder's trace on and off, and reads it between steps."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._words = np.zeros((decoder.n_threads, abi.TRACE_WORDS), np.int64)

    def switch(self, on: bool) -> None:
        """The next step is traced, or not."""
        self._decoder.trace_into(self._words if on else None)

    def read(self) -> Marks:
        """All marks since the beginning. It takes a microsecond: it is called between tokens."""
        return Marks(self._words.copy())

    @property
    def works(self) -> bool:
        """False when the kernels are older than tracing. Ask after a traced step."""
        return bool(self._words[0, abi.TRACE_LAST])
