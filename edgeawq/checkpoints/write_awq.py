"""Writing a quantized checkpoint, tensor by tensor: AutoAWQ `gemm`, or GPTQ version 2 where AutoAWQ has no form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeawq.checkpoints.analysis import OWN_MARK
from edgeawq.checkpoints.awq_folder import GPTQ_VERSION, GRIDS_FILE, PER_CHANNEL, AwqFolder
from edgeawq.checkpoints.awq_gemm import pack_linear_gemm
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.gptq_v2 import pack_linear_gptq
from edgeawq.checkpoints.grid import dequantize
from edgeawq.checkpoints.hf_config import describe_hf_config
from edgeawq.checkpoints.model import QuantizationConfig, QuantizedLinear, TokenizerFiles
from edgeawq.checkpoints.new_folder import check_target, make_folder
from edgeawq.checkpoints.safetensors_writer import SafetensorsWriter
from edgeawq.checkpoints.weight_files import INDEX_FILE, SINGLE_FILE
from edgeawq.errors import CheckpointError, UsageError

SHARD_BYTES = 5 * 10**9
# config.json says who wrote the folder: only such a folder is ever replaced.
OWN_MARK_VALUE: dict[str, object] = {"format": 1}
WRITTEN_FILES = frozenset(
    {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX_FILE, GRIDS_FILE}
)
# transformers asks in which framework's layout the tensors are.
WEIGHTS_METADATA = {"format": "pt"}
LARGEST_F16 = 65504.0


def write_awq_checkpoint(
    folder: Path,
    *,
    config: ModelConfig,
    tokenizer: TokenizerFiles,
    generation_defaults: Mapping[str, float | int | bool],
    quantization: QuantizationConfig,
    tensors: Iterable[tuple[str, npt.NDArray[np.generic]]],
    linears: Iterable[tuple[str, QuantizedLinear]],
    grids: Mapping[str, QuantizedLinear],
    source_config: Mapping[str, object],
    extra_files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint that other tools load as well (`quantization.version`: which), and return its folder.

    `tensors` are the float ones by full name (norms, biases, embedding, untied head; any float type, stored in
    float16); `linears` and `grids` go by module name. A module in `grids` (embedding or head) is stored as float16 of
    what its grid stands for, whether or not `tensors` has it, and its exact grid in a side file. `source_config` is
    the source's own config.json; `extra_files` go beside it under plain names.
    Both iterables are consumed one item at a time: memory stays at one tensor, disk at twice the largest shard.
    The same input gives the same bytes. The folder appears whole or not at all.
    Raises UsageError where the folder holds something else, CheckpointError for tensors that do not fit `config`.
    """
    check_target(folder, overwrite=overwrite, is_own=is_own_checkpoint)
    check_extra_files(extra_files)
    pack = pack_linear_gptq if quantization.version == GPTQ_VERSION else pack_linear_gemm
    with make_folder(folder) as partial:
        with ShardedWriter(partial, shard_bytes) as writer:
            write_float_tensors(writer, tensors, grids)
            for module, linear in linears:
                check_linear(module, linear, quantization)
                for part, values in pack(linear).items():
                    writer.add(f"{module}.{part}", values)
            writer.finish()
        write_grids(partial / GRIDS_FILE, grids)
        fields = {"quantization_config": describe_quantization(quantization)}
        write_description(partial, config, tokenizer, generation_defaults, source_config, extra_files, {}, fields)
        # Reading it back checks names, types and shapes of everything against the configuration.
        AwqFolder(partial, name=folder.name)
    return folder


def write_description(
    folder: Path,
    config: ModelConfig,
    tokenizer: TokenizerFiles,
    generation_defaults: Mapping[str, float | int | bool],
    source_config: Mapping[str, object],
    extra_files: Mapping[str, bytes],
    own_fields: Mapping[str, object],
    fields: Mapping[str, object],
) -> None:
    """Everything of a checkpoint but its weights. fields: more of config.json; own_fields: more of edgeawq's mark."""
    described = describe_hf_config(config, source_config) | dict(fields)
    described[OWN_MARK] = OWN_MARK_VALUE | dict(own_fields)
    write_json(folder / "config.json", described)
    write_json(folder / "generation_config.json", describe_generation(config, generation_defaults))
    write_json(folder / "tokenizer_config.json", describe_tokenizer(config, tokenizer))
    (folder / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    for name, content in extra_files.items():
        (folder / name).write_bytes(content)


class ShardedWriter:
    """Writes tensors into model.safetensors, or into numbered shards with an index once they outgrow one file."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self._shards: list[list[str]] = []  # names in each finished shard
        self._names: set[str] = set()
        self._total = 0
        self._current: SafetensorsWriter | None = None

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._current is not None:
            self._current.__exit__()

    def add(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Append one tensor, in a new shard where it would make the current one too large."""
        if name in self._names:
            raise CheckpointError(f"the tensor {name} was given twice")
        self._names.add(name)
        if self._current is not None and self._current.n_bytes + values.nbytes > self.shard_bytes:
            self._close_shard()
        if self._current is None:
            self._current = SafetensorsWriter(self._name_unfinished(len(self._shards)), WEIGHTS_METADATA)
        self._current.add(name, values)

    def finish(self) -> None:
        """Close the last shard, give the files their names, and write the index where there are several."""
        self._close_shard()
        total = len(self._shards)
        if total == 1:
            self._name_unfinished(0).rename(self.folder / SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file_name = f"model-{number + 1:05d}-of-{total:05d}.safetensors"
            self._name_unfinished(number).rename(self.folder / file_name)
            weight_map |= dict.fromkeys(names, file_name)
        write_json(
            self.folder / INDEX_FILE,
            {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))},
        )

    def _close_shard(self) -> None:
        if self._current is None:
            return
        self._current.finish()
        self._current.__exit__()
        self._total += self._current.n_bytes
        self._shards.append(self._current.names)
        self._current = None

    def _name_unfinished(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.unfinished"


def write_float_tensors(
    writer: ShardedWriter, tensors: Iterable[tuple[str, npt.NDArray[np.generic]]], grids: Mapping[str, QuantizedLinear]
) -> None:
    """Add the float tensors; those with a grid as what the grid stands for."""
    pending = {f"{module}.weight": linear for module, linear in grids.items()}
    for name, values in tensors:
        linear = pending.pop(name, None)
        if linear is not None and linear.shape != values.shape:
            raise CheckpointError(f"{name} has shape {list(values.shape)}, its grid {list(linear.shape)}")
        writer.add(name, convert_to_f16(name, values if linear is None else dequantize(linear)))
    for name, linear in pending.items():
        writer.add(name, convert_to_f16(name, dequantize(linear)))


def convert_to_f16(name: str, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float16]:
    """Float16 of a float tensor; raises CheckpointError where a value is not finite or does not fit."""
    wide = np.asarray(values, np.float32)
    largest = float(np.abs(wide).max(initial=0.0))
    if not largest <= LARGEST_F16:  # also true for NaN
        raise CheckpointError(
            f"the tensor {name} reaches {largest:.4g}; AutoAWQ's format has it in float16, up to {LARGEST_F16:.0f}",
            remedy="the model's weights cannot be stored in float16",
        )
    return wide.astype(np.float16)


def check_linear(module: str, linear: QuantizedLinear, quantization: QuantizationConfig) -> None:
    """Raise CheckpointError where a layer's grid is not the one that `quantization_config` will name."""
    bits = quantization.layer_bits.get(module, quantization.bits)
    group_size = linear.shape[1] if quantization.group_size == PER_CHANNEL else quantization.group_size
    if (linear.bits, linear.group_size) != (bits, group_size):
        raise CheckpointError(
            f"{module} has {linear.bits} bits in groups of {linear.group_size}; the checkpoint says {bits} bits in "
            f"groups of {group_size}",
            remedy="use one group size that divides the width of every layer",
        )
    if not np.isfinite(linear.scales).all():
        raise CheckpointError(f"{module} has scales that are not finite")


def write_grids(path: Path, grids: Mapping[str, QuantizedLinear]) -> None:
    """Write the side file with the exact grid of embedding and head; nothing where there is none."""
    if not grids:
        return
    settings = {
        module: json.dumps({"bits": linear.bits, "group_size": linear.group_size})
        for module, linear in sorted(grids.items())
    }
    with SafetensorsWriter(path, settings) as writer:
        for module, linear in sorted(grids.items()):
            writer.add(f"{module}.q", linear.q)
            writer.add(f"{module}.scales", linear.scales)
            writer.add(f"{module}.zeros", linear.zeros)
        writer.finish()


def describe_quantization(quantization: QuantizationConfig) -> dict[str, object]:
    """The `quantization_config` of config.json, with AutoAWQ's or GPTQ's fields."""
    if quantization.version == GPTQ_VERSION:
        described: dict[str, object] = {
            "quant_method": "gptq",
            "checkpoint_format": quantization.version,
            "bits": quantization.bits,
            "group_size": quantization.group_size,
            "sym": not quantization.zero_point,
            "desc_act": False,
            "lm_head": False,
        }
        return described | ({"dynamic": describe_overrides(quantization)} if quantization.layer_bits else {})
    return {
        "quant_method": "awq",
        "zero_point": quantization.zero_point,
        "group_size": quantization.group_size,
        "bits": quantization.bits,
        "version": quantization.version,
        "modules_to_not_convert": list(quantization.modules_to_not_convert) or None,
    }


def describe_overrides(quantization: QuantizationConfig) -> dict[str, object]:
    """GPTQModel's `dynamic`: a pattern for every kind of layer and number of bits → what differs there."""
    layers: dict[tuple[str, int], list[str]] = {}
    for module, bits in quantization.layer_bits.items():
        _, _, layer, kind = module.split(".", 3)
        layers.setdefault((kind, bits), []).append(layer)
    return {
        rf"+:^model\.layers\.({'|'.join(numbers)})\.{kind.replace('.', chr(92) + '.')}$": {"bits": bits}
        for (kind, bits), numbers in layers.items()
    }


def describe_generation(config: ModelConfig, defaults: Mapping[str, float | int | bool]) -> dict[str, object]:
    """A generation_config.json."""
    described: dict[str, object] = {}
    if config.bos_token_id is not None:
        described["bos_token_id"] = config.bos_token_id
    if config.eos_token_ids:
        described["eos_token_id"] = list(config.eos_token_ids)
    # transformers ignores a temperature, and warns, where sampling is not switched on.
    samples = any(name in defaults for name in ("temperature", "top_k", "top_p", "min_p"))
    return described | ({"do_sample": True} if samples else {}) | dict(defaults)


def describe_tokenizer(config: ModelConfig, tokenizer: TokenizerFiles) -> dict[str, object]:
    """A tokenizer_config.json."""
    described: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos_token,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "chat_template": tokenizer.chat_template,
    }
    return {key: value for key, value in described.items() if value is not None}


def check_extra_files(extra_files: Mapping[str, bytes]) -> None:
    """Raise UsageError for a name that leaves the folder or is one of the checkpoint's own."""
    for name in extra_files:
        own = name in WRITTEN_FILES or name.endswith((".safetensors", ".unfinished", ".spool"))
        if own or not name or name != Path(name).name or name.startswith("."):
            raise UsageError(f"{name!r} cannot be the name of an extra file of a checkpoint")


def is_own_checkpoint(folder: Path) -> bool:
    """Whether a folder was written by edgeawq."""
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and OWN_MARK in described


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON with one field a line."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
