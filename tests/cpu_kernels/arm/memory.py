"""Memory at a fixed address, filled by a test, worked on by an emulated Arm program or by this machine, and read back.

Every byte that no array covers is POISON before and must be POISON after: a kernel that writes outside its arrays is
caught.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cpu_kernels.arm.driver import ARITY, BASE, BUILTINS

POISON = 0xA5
_HEADER = 64
_GUARD = 64  # bytes between two arrays
_TIMEOUT = 300  # seconds; for a program that hangs


@dataclass(frozen=True)
class Slot:
    """An array in the memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Memory:
    """Arrays and calls; `symbols` are the functions of the kernel object, in the driver's order."""

    symbols: list[str]
    _slots: list[tuple[Slot, npt.NDArray[Any] | None]] = field(default_factory=list)
    _calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    _end: int = BASE + _HEADER + _GUARD

    def place(self, array: npt.NDArray[Any]) -> Slot:
        """Put a copy of `array` into the memory, on a cache line."""
        slot = self._take(array.shape, array.dtype)
        self._slots.append((slot, np.ascontiguousarray(array)))
        return slot

    def reserve(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Slot:
        """Room for a result: poisoned, so that what is not written is seen."""
        slot = self._take(shape, np.dtype(dtype))
        self._slots.append((slot, None))
        return slot

    def call(self, symbol: str, *arguments: int) -> None:
        """Call a function of the object, or one of BUILTINS, after the calls before."""
        self._calls.append((symbol, arguments))

    def index(self, symbol: str) -> int:
        """How the driver numbers a function."""
        return [*BUILTINS, *self.symbols].index(symbol)

    def _take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Slot:
        slot = Slot(self._end, tuple(shape), dtype)
        self._end = -(-(self._end + slot.nbytes + _GUARD) // 64) * 64
        return slot

    def image(self) -> npt.NDArray[np.uint8]:
        """The bytes at BASE before the first call."""
        index = {name: self.index(name) for name in [*BUILTINS, *self.symbols]}
        calls = np.zeros((len(self._calls), 1 + ARITY), np.int64)
        for row, (symbol, arguments) in zip(calls, self._calls, strict=True):
            row[0] = index[symbol]
            row[1 : 1 + len(arguments)] = arguments
        size = self._end - BASE
        image = np.full(size + calls.nbytes, POISON, np.uint8)
        image[:32] = np.array([size, len(calls), self._end, 0], np.int64).view(np.uint8)
        image[size:] = calls.reshape(-1).view(np.uint8)
        for slot, array in self._slots:
            if array is not None:
                image[slot.address - BASE :][: slot.nbytes] = array.reshape(-1).view(np.uint8)
        return image

    def run_emulated(self, qemu: str, program: Path, cpu: str) -> Result:
        """Run under qemu-user. The caller looks at `status`: a negative one is the signal that ended the program."""
        done = subprocess.run(
            [qemu, "-cpu", cpu, str(program)],
            input=self.image().tobytes(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
        return Result(self, done.returncode, np.frombuffer(done.stdout, np.uint8))

    def run_here(self, call: Callable[..., None]) -> Result:
        """Make the same calls in this process, at the same address: call(symbol, *arguments)."""
        image = self.image()
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        fixed_noreplace = 0x100000
        start = library.mmap(BASE, image.nbytes, 3, 0x02 | 0x20 | fixed_noreplace, -1, 0)
        assert start == BASE, f"nothing can be mapped at {BASE:#x} here"
        threads = []
        try:
            ctypes.memmove(BASE, image.ctypes.data, image.nbytes)
            for symbol, arguments in self._calls:
                if symbol == "poke":
                    ctypes.c_int64.from_address(arguments[0]).value = arguments[1]
                elif symbol == "memcpy":
                    ctypes.memmove(*arguments)
                elif symbol == "spawn":
                    function = self.symbols[arguments[0] - len(BUILTINS)]
                    threads.append(threading.Thread(target=call, args=(function, *arguments[1:3]), daemon=True))
                    threads[-1].start()
                else:
                    call(symbol, *arguments)
            for thread in threads:
                thread.join(_TIMEOUT)
            after = np.frombuffer(ctypes.string_at(BASE, self._end - BASE), np.uint8)
        finally:
            library.munmap(BASE, image.nbytes)
        return Result(self, 0, after)

    def covered(self) -> npt.NDArray[np.bool_]:
        """Which bytes belong to an array or the header."""
        mask = np.zeros(self._end - BASE, np.bool_)
        mask[:_HEADER] = True
        for slot, _ in self._slots:
            mask[slot.address - BASE :][: slot.nbytes] = True
        return mask


@dataclass(frozen=True)
class Result:
    """The memory after the calls."""

    memory: Memory
    status: int
    bytes_after: npt.NDArray[np.uint8]

    def read(self, slot: Slot) -> npt.NDArray[Any]:
        data = self.bytes_after[slot.address - BASE :][: slot.nbytes]
        return data.copy().view(slot.dtype).reshape(slot.shape)

    def strays(self) -> list[int]:
        """Addresses outside every array that were written."""
        wrong = ~self.memory.covered() & (self.bytes_after != POISON)
        return [BASE + int(at) for at in np.flatnonzero(wrong)[:16]]
