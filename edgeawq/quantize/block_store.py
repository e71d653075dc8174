"""Finished blocks on disk until the checkpoint is written, so that memory holds one block at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.checkpoints.new_folder import PARTIAL_MARK, remove_leftovers
from edgeawq.errors import QuantizationError
from edgeawq.quantize.block import QuantizedBlock


class BlockStore:
    """A folder with one .npz per block; made by `open_store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, layer: int, block: QuantizedBlock) -> None:
        """Write one block; raises QuantizationError where the disk does not take it."""
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        for module, linear in block.linears.items():
            arrays[f"linear/{module}/q"] = linear.q
            arrays[f"linear/{module}/scales"] = linear.scales
            arrays[f"linear/{module}/zeros"] = linear.zeros
            arrays[f"linear/{module}/grid"] = np.array([linear.bits, linear.group_size])
        for name, tensor in block.floats.items():
            arrays[f"float/{name}"] = tensor.numpy()
        try:
            with self._name(layer).open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise QuantizationError(
                f"block {layer} cannot be stored in {self.folder}: {error.strerror or error}",
                remedy="free some space there, or choose another output folder",
            ) from error

    def load(self, layer: int) -> QuantizedBlock:
        """A block as it was saved."""
        linears: dict[str, QuantizedLinear] = {}
        floats: dict[str, torch.Tensor] = {}
        with np.load(self._name(layer), allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition("/")
                if kind == "float":
                    floats[name] = torch.from_numpy(arrays[key])
                elif name.endswith("/q"):
                    module = name.removesuffix("/q")
                    bits, group_size = arrays[f"linear/{module}/grid"].tolist()
                    scales, zeros = arrays[f"linear/{module}/scales"], arrays[f"linear/{module}/zeros"]
                    linears[module] = QuantizedLinear(arrays[key], scales, zeros, bits, group_size)
        return QuantizedBlock(linears, floats)

    def _name(self, layer: int) -> Path:
        return self.folder / f"block-{layer:05d}.npz"


@contextmanager
def open_store(output: Path) -> Iterator[BlockStore]:
    """An empty store beside the output folder, where there is room for the checkpoint too; removed at the end.

    What an earlier, killed run to the same output left behind is removed as well.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}{PARTIAL_MARK}{os.getpid()}-", dir=output.parent))
    except OSError as error:
        raise QuantizationError(
            f"{output.parent} cannot be written: {error.strerror or error}",
            remedy="check the permissions there, or choose another output folder",
        ) from error
    try:
        yield BlockStore(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
