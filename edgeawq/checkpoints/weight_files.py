"""The safetensors files of a model folder as one set of tensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.json_file import read_json_object
from edgeawq.checkpoints.safetensors_file import SafetensorsFile, StoredTensor
from edgeawq.errors import CheckpointError, UnsafeFileError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SHARD_NAME = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# Formats that run code while they are read.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_SHARDS = 4096


class WeightFiles:
    """Tensors by name, whichever file they lie in; opening reads every file's header."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, SafetensorsFile] = {}
        index = folder / INDEX_FILE
        weight_map = read_weight_map(index) if index.is_file() else None
        names = sorted(set(weight_map.values())) if weight_map is not None else find_weight_files(folder)
        for name in names:
            self._add(name, names)
        for tensor, name in (weight_map or {}).items():
            if tensor not in self._file_of or self._file_of[tensor].path.name != name:
                raise CheckpointError(
                    f"{index}: the tensor {tensor} should be in {name} and is not",
                    remedy="the files are of different versions; get the checkpoint again",
                )

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor's header entry."""
        return {name: file.tensors[name] for name, file in self._file_of.items()}

    def read_float(self, name: str) -> npt.NDArray[np.float32]:
        """A float tensor in float32."""
        return self._find(name).read_float(name)

    def read_stored(self, name: str) -> npt.NDArray[np.generic]:
        """A tensor as it is stored, not copied."""
        return self._find(name).read_stored(name)

    def _find(self, name: str) -> SafetensorsFile:
        if name not in self._file_of:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        return self._file_of[name]

    def _add(self, name: str, all_names: list[str]) -> None:
        path = self.folder / name
        if not path.is_file():
            missing = [other for other in all_names if not (self.folder / other).is_file()]
            raise CheckpointError(
                f"{self.folder}: {len(missing)} of {len(all_names)} weight files are missing: {', '.join(missing[:5])}",
                remedy="the download is incomplete; get the missing files",
            )
        file = SafetensorsFile(path)
        for tensor in file.tensors:
            if tensor in self._file_of:
                raise CheckpointError(
                    f"{self.folder}: the tensor {tensor} is in {self._file_of[tensor].path.name} and in {name}",
                    remedy="the files are of different versions; get the checkpoint again",
                )
            self._file_of[tensor] = file


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor to file name from an index; raises UnsafeFileError for a name that leaves the folder."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", remedy="get the checkpoint again")
    for name in set(map(str, weight_map.values())):
        if name != Path(name).name or name.startswith(".") or "\\" in name or "\0" in name:
            raise UnsafeFileError(
                f"{index} names a weight file outside its own folder: {name!r}",
                remedy="do not use this checkpoint; it was tampered with",
            )
        refuse_pickle(index.parent / name)
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names a weight file that is not a safetensors file: {name!r}")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(set(weight_map.values())):,} files; at most {MAX_SHARDS:,} are read")
    return {str(tensor): str(name) for tensor, name in weight_map.items()}


def find_weight_files(folder: Path) -> list[str]:
    """The weight files of a folder without an index; raises where there are none, or only pickles."""
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    for path in sorted(folder.iterdir()):
        match = SHARD_NAME.fullmatch(path.name)
        if match is not None:
            # Shards say how many they are, so the set can be checked without its index.
            total = int(match[2])
            return [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, min(total, MAX_SHARDS) + 1)]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1 and not others[0].startswith("adapter_"):
        return others
    for path in sorted(folder.iterdir()):
        if path.suffix != ".bin" or path.name.startswith("pytorch_model"):
            refuse_pickle(path)
    raise CheckpointError(
        f"{folder} holds no {SINGLE_FILE}" + (f", but {', '.join(others[:5])}" if others else ""),
        remedy="copy the model's *.safetensors files there, with model.safetensors.index.json where it has one",
    )


def refuse_pickle(path: Path) -> None:
    """Raise UnsafeFileError for a file in a format that can run code when it is loaded."""
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        return
    folder = path.parent
    raise UnsafeFileError(
        f"{path} is a pickle, which can run code when it is loaded; it is not opened",
        remedy="look for a *.safetensors version of the model; or, only if you trust its author, convert it: "
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained({str(folder)!r}).save_pretrained('converted'); "
        f"T.from_pretrained({str(folder)!r}).save_pretrained('converted')\"",
    )
