"""Activations of the calibration tokens between two blocks: in memory, or in a file where they are too large for it.

Both kinds are read and written one sequence at a time, as `states[i : i + 1]`, so that code which takes one takes the
other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from edgeawq.errors import QuantizationError

BYTES = 4  # of a float32


class StoredActivations:
    """float32 [sequences, seqlen, width] in a file, which stays; memory holds what is being read."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.shape = shape
        self._sequence_bytes = shape[1] * shape[2] * BYTES
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._descriptor, shape[0] * self._sequence_bytes)
        except OSError as error:
            raise describe_failure(path, error) from error

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, sequences: slice) -> torch.Tensor:
        """Some neighbouring sequences as a tensor of their own."""
        first, last = self._range(sequences)
        content = bytearray((last - first) * self._sequence_bytes)
        view = memoryview(content)
        while view:
            offset = last * self._sequence_bytes - len(view)
            done = os.preadv(self._descriptor, [view], offset)
            if done == 0:
                raise QuantizationError(f"{self.path} ends early", remedy="delete it and start again")
            view = view[done:]
        return torch.frombuffer(content, dtype=torch.float32).view(last - first, *self.shape[1:])

    def __setitem__(self, sequences: slice, values: torch.Tensor) -> None:
        first, last = self._range(sequences)
        if tuple(values.shape) != (last - first, *self.shape[1:]):
            raise ValueError(f"{tuple(values.shape)} does not fit {last - first} sequences of {self.shape[1:]}")
        view = np.ascontiguousarray(values.numpy(), np.float32).data.cast("B")
        while view:
            try:
                done = os.pwrite(self._descriptor, view, last * self._sequence_bytes - len(view))
            except OSError as error:
                raise describe_failure(self.path, error) from error
            view = view[done:]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def sync(self) -> None:
        """See the content safely on the disk."""
        os.fsync(self._descriptor)

    def _range(self, sequences: slice) -> tuple[int, int]:
        first, last, step = sequences.indices(self.shape[0])
        if step != 1:
            raise ValueError("only neighbouring sequences are read together")
        return first, max(first, last)


Activations: TypeAlias = "torch.Tensor | StoredActivations"


def make_activations(shape: tuple[int, int, int], path: Path | None) -> Activations:
    """Room for activations: in memory, or in a new file."""
    if path is None:
        room: torch.Tensor = torch.empty(shape)
        return room
    path.unlink(missing_ok=True)
    return StoredActivations(path, shape)


def count_bytes(shape: tuple[int, int, int]) -> int:
    """What activations take."""
    return shape[0] * shape[1] * shape[2] * BYTES


def describe_failure(path: Path, error: OSError) -> QuantizationError:
    """The error for a file of activations that cannot be written."""
    return QuantizationError(
        f"activations cannot be stored in {path}: {error.strerror or error}",
        remedy="free some space there, choose another output folder, or calibrate on fewer tokens (--calib-tokens)",
    )
