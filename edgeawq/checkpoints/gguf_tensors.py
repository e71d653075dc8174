"""The values of one GGUF tensor; the `gguf` library knows the block formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.gguf_header import GgufTensor
from edgeawq.checkpoints.mapped_file import MappedFile
from edgeawq.errors import CheckpointError, MissingExtraError, UnsupportedModelError

# Weights dequantized at a time: bounds the temporary copies, and they stay in the cache.
SLICE_ELEMENTS = 1 << 20


def count_bytes(tensor: GgufTensor) -> int:
    """The bytes that a tensor takes; raises UnsupportedModelError for an unknown type, CheckpointError for odd rows."""
    block, type_size = find_block(tensor)
    if not tensor.shape or 0 in tensor.shape:
        raise CheckpointError(f"the tensor {tensor.name} has the shape {list(tensor.shape)}")
    if tensor.shape[-1] % block:
        raise CheckpointError(
            f"the tensor {tensor.name} has rows of {tensor.shape[-1]} values, which blocks of {block} do not divide"
        )
    n_elements = 1
    for size in tensor.shape:
        n_elements *= size
    return n_elements // block * type_size


def find_block(tensor: GgufTensor) -> tuple[int, int]:
    """(values, bytes) of one block of the tensor's type."""
    gguf = load_gguf()
    try:
        kind = gguf.GGMLQuantizationType(tensor.type_id)
        block, type_size = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"the tensor {tensor.name} has the GGUF type {tensor.type_id}, unknown to the installed gguf library",
            remedy="pip install -U gguf",
        ) from error
    return int(block), int(type_size)


def dequantize_tensor(file: MappedFile, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """Read one tensor as float32, some rows at a time."""
    gguf = load_gguf()
    block, type_size = find_block(tensor)
    n_bytes = count_bytes(tensor)
    file.require(tensor.offset, n_bytes, f"the tensor {tensor.name}")
    in_features = tensor.shape[-1]
    row_bytes = in_features // block * type_size
    stored = np.frombuffer(file.data, np.uint8, n_bytes, tensor.offset).reshape(-1, row_bytes)
    values = np.empty((stored.shape[0], in_features), np.float32)  # [rows, in]
    step = max(1, SLICE_ELEMENTS // in_features)
    kind = gguf.GGMLQuantizationType(tensor.type_id)
    try:
        for start in range(0, stored.shape[0], step):
            values[start : start + step] = gguf.quants.dequantize(stored[start : start + step], kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"the tensor {tensor.name} has the type {kind.name}, which the installed gguf library cannot dequantize",
            remedy="pip install -U gguf; or use a file of another quantization (Q8_0, Q4_K_M, F16 …)",
        ) from error
    file.release(tensor.offset, n_bytes)
    return values.reshape(tensor.shape)


def load_gguf() -> Any:
    """The `gguf` library's tables and dequantizers; raises MissingExtraError where it is not installed."""
    try:
        import gguf
        import gguf.quants
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "host") from error
    return gguf
