"""Open a bundle for running: the manifest checked, the weights mapped as they lie."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpu_kernels.abi import ABI_VERSION
from edgeawq.errors import BundleError
from packager.bundle_files import open_bundle_file
from packager.manifest import KernelEntry, Manifest, TensorEntry
from packager.manifest_reader import read_manifest
from packager.records import LAYOUTS, record_shape

_REMEDY = "pack the checkpoint again with `edgeawq pack`, or copy the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. `weights` is the mapped file: uint8 [bytes], read-only, shared with the page cache."""

    folder: Path
    manifest: Manifest
    weights: npt.NDArray[np.uint8]

    def address(self, tensor: TensorEntry) -> int:
        """Byte address of a tensor's first byte in this process."""
        return int(self.weights.ctypes.data) + tensor.offset

    def tensor(self, name: str) -> TensorEntry:
        """The tensor `name`; BundleError when there is none."""
        entry = self.manifest.tensor(name)
        if entry is None:
            raise BundleError(f"{self.folder} has no tensor {name!r}", remedy=_REMEDY)
        return entry

    def float_tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A float32 tensor, [out_features], as a view of the mapped file."""
        entry = self.tensor(name)
        return self.weights[entry.offset : entry.offset + entry.nbytes].view(np.float32)

    def kernel_object(self, kernel: KernelEntry) -> bytes:
        """The bytes of a kernel object; BundleError when its size is not the manifest's."""
        entry = next(file for file in self.manifest.files if file.path == kernel.file)
        with open_bundle_file(self.folder, entry.path) as file:
            data = file.read(entry.size + 1)
        if len(data) != entry.size:
            raise BundleError(
                f"{self.folder / entry.path} has {len(data)} bytes, the manifest says {entry.size}", remedy=_REMEDY
            )
        return data


def open_bundle(folder: Path) -> Bundle:
    """Open the bundle in `folder`.

    Hashes are checked when a bundle arrives, or when asked (`packager.bundle_files.verify_files`), not at every start;
    sizes, places and shapes are checked here, so that no kernel reads outside the file.
    Raises BundleError.
    """
    manifest = read_manifest(folder)
    entry = manifest.file("weights")
    assert entry is not None  # the manifest's reader requires one
    with open_bundle_file(folder, entry.path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise BundleError(f"{folder / entry.path} has {size} bytes, the manifest says {entry.size}", remedy=_REMEDY)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    for tensor in manifest.tensors:
        _check_layout(folder, tensor)
    _check_model(folder, manifest)
    return Bundle(folder, manifest, np.frombuffer(mapped, dtype=np.uint8))


def _check_layout(folder: Path, tensor: TensorEntry) -> None:
    if tensor.kind != "linear":
        return
    if tensor.layout not in LAYOUTS:
        raise BundleError(
            f"tensor {tensor.name!r} of {folder} has layout {tensor.layout!r}; known: {', '.join(LAYOUTS)}",
            remedy=_REMEDY,
        )
    layout = LAYOUTS[tensor.layout]
    # gate and up are laid out each for itself and interleaved
    halves = 2 if tensor.name.endswith(".gate_up") else 1
    rows = tensor.out_features // halves
    shape = record_shape(layout, rows, tensor.in_features, tensor.bits, tensor.group_size)
    if tensor.nbytes != halves * shape.total_bytes or tensor.out_features % halves:
        raise BundleError(
            f"tensor {tensor.name!r} of {folder} has {tensor.nbytes} bytes, its layout takes "
            f"{halves * shape.total_bytes}",
            remedy=_REMEDY,
        )


def _check_model(folder: Path, manifest: Manifest) -> None:
    model = manifest.model
    if model.head_dim % 16:
        raise BundleError(
            f"{folder} has heads of {model.head_dim} features; the kernels take multiples of 16",
            remedy="this model cannot run yet",
        )
    if model.mlp_bias:
        raise BundleError(f"{folder} has biases in its MLP, which no kernel adds", remedy="this model cannot run yet")
    layouts = {tensor.layout for tensor in manifest.tensors if tensor.kind == "linear"}
    if len(layouts) != 1:
        raise BundleError(f"{folder} mixes the layouts {', '.join(sorted(layouts))}", remedy=_REMEDY)
    if any(kernel.abi != ABI_VERSION for kernel in manifest.kernels):
        raise BundleError(
            f"{folder} has kernels of another version than {ABI_VERSION}, the one that this edgeawq calls",
            remedy=_REMEDY,
        )
