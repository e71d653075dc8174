"""A quantized folder as a Checkpoint: float tensors as they are, linear layers on their grid.

Two formats are read: AutoAWQ's `gemm`, for 4 bits, and GPTQ's version 2, for 2, 3, 4 and 8 bits and for layers that
differ. A folder that edgeawq wrote also holds the exact grid of embedding and head in a side file, because both formats
keep those two in float16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.awq_gemm import BITS, VALUES_PER_WORD, unpack_linear_gemm
from edgeawq.checkpoints.gptq_v2 import (
    GPTQ_BITS,
    GPTQ_DTYPES,
    check_group_order,
    list_gptq_shapes,
    read_grid_shape,
    unpack_linear_gptq,
)
from edgeawq.checkpoints.grid import dequantize
from edgeawq.checkpoints.hf_folder import FolderDescription, check_nothing_else
from edgeawq.checkpoints.json_fields import JsonFields
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear
from edgeawq.checkpoints.safetensors_file import FLOAT_DTYPES, SafetensorsFile
from edgeawq.checkpoints.tensor_shapes import check_shapes, list_linear_shapes
from edgeawq.checkpoints.weight_files import WeightFiles
from edgeawq.errors import CheckpointError, UnsupportedModelError

GRIDS_FILE = "edgeawq_grids.safetensors"
PACKED_DTYPES = {"qweight": "I32", "qzeros": "I32", "scales": "F16"}
CHECKED_ROWS = 64
GEMM_VERSION, GPTQ_VERSION = "gemm", "gptq_v2"
PER_CHANNEL = -1  # group size: one group for every output row


class AwqFolder(FolderDescription):
    """A quantized Checkpoint; opening reads headers only."""

    def __init__(self, folder: Path, name: str = "") -> None:
        super().__init__(folder, name)
        described = read_quantization(self.config.extra, str(folder))
        self._is_gptq = described.version == GPTQ_VERSION
        self._weights = WeightFiles(folder)
        self._grids, self._grid_settings = open_grids(folder / GRIDS_FILE)
        self._packed = self._find_packed(described)
        layer_bits = {module: bits for module, (bits, _) in self._packed.items() if bits != described.bits}
        self.quantization: QuantizationConfig | None = replace(described, layer_bits=layer_bits)
        self._check_tensors()

    def tensor_names(self) -> list[str]:
        """The names of the float model's tensors, in its order."""
        return list(self.shapes)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor in float32; what its grid stands for where it is quantized."""
        if name not in self.shapes:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        linear = self.quantized_linear(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return dequantize(linear) if linear is not None else self._weights.read_float(name)

    def quantized_linear(self, module: str) -> QuantizedLinear | None:
        """The grid of a module; None where it is stored in float.

        Raises CheckpointError for scales that are not finite, which some tools write for groups of zeros.
        """
        if module in self._grid_settings:
            linear = self._read_grid(module)
        elif module in self._packed:
            linear = self._unpack(module)
        else:
            return None
        if not np.isfinite(linear.scales).all():
            raise CheckpointError(
                f"{self.folder}: {np.count_nonzero(~np.isfinite(linear.scales)):,} scales of {module} are not finite",
                remedy="the tool that quantized the model produced NaN (groups of zeros); quantize it with edgeawq",
            )
        return linear

    def _unpack(self, module: str) -> QuantizedLinear:
        bits, group_size = self._packed[module]
        qweight, qzeros, scales = (self._weights.read_stored(f"{module}.{part}") for part in PACKED_DTYPES)
        packed = (qweight.astype(np.int32), qzeros.astype(np.int32), scales.astype(np.float16))
        if not self._is_gptq:
            return unpack_linear_gemm(*packed, group_size)
        if f"{module}.g_idx" in self._weights.tensors:
            check_group_order(module, self._weights.read_stored(f"{module}.g_idx").astype(np.int32), group_size)
        return unpack_linear_gptq(*packed, bits, group_size)

    def _find_packed(self, described: QuantizationConfig) -> dict[str, tuple[int, int]]:
        """(bits, group size) of every packed layer; GPTQ's from the shapes of its tensors."""
        stored = self._weights.tensors
        packed: dict[str, tuple[int, int]] = {}
        for module, shape in list_linear_shapes(self.config).items():
            if f"{module}.qweight" not in stored:
                continue
            if not self._is_gptq:
                packed[module] = (described.bits, described.group_size if described.group_size > 0 else shape[1])
                continue
            scales = stored.get(f"{module}.scales")
            found = scales.shape if scales is not None else ()
            packed[module] = read_grid_shape(module, shape, stored[f"{module}.qweight"].shape, found)
        return packed

    def _check_tensors(self) -> None:
        stored = self._weights.tensors
        expected: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, tuple[str, ...]] = {}
        packed_dtypes = GPTQ_DTYPES if self._is_gptq else PACKED_DTYPES
        for tensor, shape in self.shapes.items():
            module, _, kind = tensor.rpartition(".")
            if module not in self._packed or kind != "weight":
                expected[tensor] = shape
                dtypes[tensor] = FLOAT_DTYPES
                continue
            bits, group_size = self._packed[module]
            if self._is_gptq:
                parts = list_gptq_shapes(module, (shape[0], shape[1]), bits, group_size)
                if f"{module}.g_idx" not in stored:
                    del parts[f"{module}.g_idx"]
            else:
                parts = list_packed_shapes(module, shape[0], shape[1], group_size)
            expected |= parts
            dtypes |= {name: (packed_dtypes[name.rpartition(".")[2]],) for name in parts}
        check_shapes(expected, {tensor: entry.shape for tensor, entry in stored.items()}, str(self.folder))
        check_nothing_else(set(stored) - set(expected), self.config, str(self.folder))
        for tensor, possible in dtypes.items():
            if stored[tensor].dtype not in possible:
                raise CheckpointError(
                    f"{self.folder}: the tensor {tensor} is stored as {stored[tensor].dtype}; "
                    f"the format has {' or '.join(possible)} there"
                )
        self._check_grids()

    def _check_grids(self) -> None:
        for module, (bits, group_size) in self._grid_settings.items():
            shape = self.shapes.get(f"{module}.weight")
            if shape is None or len(shape) != 2 or not 2 <= bits <= 8 or group_size < 1 or shape[1] % group_size:
                raise self._stale(f"{module} with {bits} bits in groups of {group_size} does not fit the model")
            groups = (shape[0], shape[1] // group_size)
            wanted = {"q": ("U8", shape), "scales": ("F16", groups), "zeros": ("U8", groups)}
            for part, (dtype, part_shape) in wanted.items():
                entry = self._grids.tensors.get(f"{module}.{part}") if self._grids is not None else None
                if entry is None or entry.dtype != dtype or entry.shape != part_shape:
                    raise self._stale(f"{module}.{part} is not {dtype} of shape {list(part_shape)}")

    def _read_grid(self, module: str) -> QuantizedLinear:
        assert self._grids is not None
        bits, group_size = self._grid_settings[module]
        linear = QuantizedLinear(
            q=self._grids.read_stored(f"{module}.q").astype(np.uint8),
            scales=self._grids.read_stored(f"{module}.scales").astype(np.float16),
            zeros=self._grids.read_stored(f"{module}.zeros").astype(np.uint8),
            bits=bits,
            group_size=group_size,
        )
        if int(linear.q.max()) >= 1 << bits or int(linear.zeros.max()) >= 1 << bits:
            raise self._stale(f"{module} holds values beyond {bits} bits")
        head = QuantizedLinear(
            linear.q[:CHECKED_ROWS], linear.scales[:CHECKED_ROWS], linear.zeros[:CHECKED_ROWS], bits, group_size
        )
        stored = self._weights.read_float(f"{module}.weight")[:CHECKED_ROWS]
        if not np.array_equal(dequantize(head).astype(np.float16), stored.astype(np.float16), equal_nan=True):
            raise self._stale(f"{module} there is not the {module} of the weights")
        return linear

    def _stale(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / GRIDS_FILE} does not belong to the weights: {what}",
            remedy=f"quantize the model again, or delete {GRIDS_FILE} to have embedding and head rounded anew",
        )


def read_quantization(config: Mapping[str, object], where: str) -> QuantizationConfig:
    """The `quantization_config` of a config.json; UnsupportedModelError for other than AutoAWQ gemm and GPTQ v2."""
    fields = JsonFields(config, f"{where}/config.json").child("quantization_config")
    method = fields.values.get("quant_method")
    if method == "awq":
        version = str(fields.values.get("version", fields.values.get("format", "gemm"))).lower()
        bits, zero_point = fields.read_int("bits", BITS), fields.read_bool("zero_point", True)
        if version != GEMM_VERSION or bits != BITS or not zero_point:
            raise UnsupportedModelError(
                f"{where} is an AWQ checkpoint of version {version!r} with {bits} bits"
                f"{'' if zero_point else ' without zero points'}; read is version 'gemm' with {BITS} bits and zero "
                "points",
                remedy="give the original float checkpoint and quantize it with: edgeawq quantize",
            )
    elif method == "gptq":
        version = str(fields.values.get("checkpoint_format", "gptq")).lower()
        bits, zero_point = fields.read_int("bits", BITS), not fields.read_bool("sym", True)
        if version != GPTQ_VERSION or bits not in GPTQ_BITS:
            raise UnsupportedModelError(
                f"{where} is a GPTQ checkpoint of format {version!r} with {bits} bits; read is format "
                f"'{GPTQ_VERSION}' with {', '.join(map(str, GPTQ_BITS))} bits",
                remedy="give the original float checkpoint and quantize it with: edgeawq quantize",
            )
    else:
        raise UnsupportedModelError(
            f"{where} is quantized with {method!r}; quantized checkpoints are read in AutoAWQ's gemm format and in "
            "GPTQ's version 2",
            remedy="give the original float checkpoint and quantize it with: edgeawq quantize",
        )
    skipped = fields.values.get("modules_to_not_convert") or []
    if not isinstance(skipped, list):
        raise fields.wrong("modules_to_not_convert", "a list")
    group_size = fields.read_int("group_size", 128)
    if group_size < 1 and group_size != PER_CHANNEL:
        raise UnsupportedModelError(
            f"{where}: a group size of {group_size} is not supported",
            remedy="give the original float checkpoint and quantize it with: edgeawq quantize",
        )
    return QuantizationConfig(bits, group_size, zero_point, version, tuple(map(str, skipped)))


def list_packed_shapes(module: str, out_features: int, in_features: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of AutoAWQ's tensors for a linear layer; raises CheckpointError where the group does not fit."""
    if in_features % group_size or out_features % VALUES_PER_WORD:
        raise CheckpointError(
            f"{module} [{out_features}, {in_features}] cannot be packed in groups of {group_size} inputs and words of "
            f"{VALUES_PER_WORD} outputs"
        )
    groups, words = in_features // group_size, out_features // VALUES_PER_WORD
    return {
        f"{module}.qweight": (in_features, words),
        f"{module}.qzeros": (groups, words),
        f"{module}.scales": (groups, out_features),
    }


def open_grids(path: Path) -> tuple[SafetensorsFile | None, dict[str, tuple[int, int]]]:
    """The side file and (bits, group_size) of each module in it; (None, {}) where there is none."""
    if not path.is_file():
        return None, {}
    file = SafetensorsFile(path)
    settings: dict[str, tuple[int, int]] = {}
    for module, text in file.metadata.items():
        try:
            entry = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{path}: the settings of {module} are not JSON") from error
        if not isinstance(entry, dict):
            raise CheckpointError(f"{path}: the settings of {module} are not a JSON object")
        fields = JsonFields(entry, f"{path}: {module}")
        settings[module] = (fields.read_int("bits"), fields.read_int("group_size"))
    return file, settings
