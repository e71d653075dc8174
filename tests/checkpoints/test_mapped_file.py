"""Memory that a mapped file takes from the process that reads it."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgeawq.checkpoints.mapped_file import MappedFile
from edgeawq.checkpoints.safetensors_file import SafetensorsFile

ROWS, COLUMNS = 1024, 1024
TENSOR_KIB = ROWS * COLUMNS * 2 // 1024


def resident_kib(path: Path) -> int:
    """KiB of the file that count as this process's memory."""
    found = 0
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if str(path) in part.partition("\n")[0]:
            found += int(re.findall(r"(?m)^Rss: +(\d+) kB", part)[0])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_tensors_that_were_copied_leave_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    tensors = {name: rng.normal(size=(ROWS, COLUMNS)).astype(np.float16) for name in "abc"}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    file = SafetensorsFile(path)
    view = file.read_stored("a")
    assert np.array_equal(view, tensors["a"])
    assert resident_kib(path) >= TENSOR_KIB  # a view keeps what it shows
    for name, stored in tensors.items():
        assert np.array_equal(file.read_float(name), stored.astype(np.float32))
    # Reading a page maps its neighbours too, so that a little is left at both ends.
    assert resident_kib(path) < TENSOR_KIB // 4
    assert np.array_equal(view, tensors["a"])  # and what is released can be read again


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 1])
def test_pieces_of_any_place_and_size_can_be_released(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(content)
    file = MappedFile(tmp_path / "x")
    for start in (0, 1, mmap.PAGESIZE - 1, mmap.PAGESIZE, mmap.PAGESIZE + 1):
        for end in (start, start + 1, start + 2 * mmap.PAGESIZE, size):
            if start <= end <= size:
                file.release(start, end - start)
                assert file.read(0, size, "everything") == content
