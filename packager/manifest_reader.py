"""Reads a manifest and believes nothing it has not checked. Standard library only, as the runtime imports it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeawq.errors import BundleError
from packager.bundle_files import check_path, open_bundle_file
from packager.manifest import (
    BITS,
    FORMAT,
    FORMAT_VERSION,
    KERNEL_ABI,
    MANIFEST_NAME,
    MAX_FILES,
    MAX_KERNELS,
    MAX_MANIFEST_BYTES,
    MAX_TENSORS,
    ROLES,
    DeviceSpec,
    FileEntry,
    KernelEntry,
    Manifest,
    ModelSpec,
    RopeScalingSpec,
    TensorEntry,
)
from packager.manifest_checks import check_manifest
from packager.strict_fields import Fields, refuse

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,127}")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_TENSOR_NAME = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32}){0,3}")
_FEATURE = re.compile(r"[+-][a-z0-9][a-z0-9_.-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest; anything unknown, missing, out of bounds or unsafe raises BundleError.

    Refused: another format or version, keys that are unknown or given twice, absolute paths, "..", backslashes,
    names outside the safe characters, duplicate names, tensors outside weights.bin, misaligned or overlapping,
    and a list of tensors that is not what the model needs.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise refuse(f"the manifest has {len(data)} bytes, the limit is {MAX_MANIFEST_BYTES}")
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise refuse(f"the manifest is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise refuse("the manifest is not a JSON object")
    _check_format(document)
    top = Fields(document, "", {"format", "format_version", "tool", "model", "device", "files", "kernels", "tensors"})
    tool = Fields(top.take("tool"), "tool", {"name", "version"})
    manifest = Manifest(
        tool_name=tool.text("name", _WORD),
        tool_version=tool.text("version", _WORD),
        model=_parse_model(top.take("model")),
        device=_parse_device(top.take("device")),
        files=tuple(_parse_file(value, i) for i, value in enumerate(top.items("files", MAX_FILES))),
        kernels=tuple(_parse_kernel(value, i) for i, value in enumerate(top.items("kernels", MAX_KERNELS))),
        tensors=tuple(_parse_tensor(value, i) for i, value in enumerate(top.items("tensors", MAX_TENSORS))),
    )
    check_manifest(manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the bundle in `folder`."""
    if folder.is_dir() and not os.path.lexists(folder / MANIFEST_NAME):
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}",
            remedy="`edgeawq pack CHECKPOINT --device host -o BUNDLE` makes one of a quantized checkpoint",
        )
    with open_bundle_file(folder, MANIFEST_NAME) as file:
        return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))


def _field_names(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _parse_model(value: object) -> ModelSpec:
    fields = Fields(value, "model", _field_names(ModelSpec))
    scaling = fields.take("rope_scaling")
    bos = fields.take("bos_token_id")
    eos = fields.items("eos_token_ids", 64)
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in eos):
        raise refuse("the manifest's model.eos_token_ids are not token ids")
    model = ModelSpec(
        name=fields.text("name", _NAME),
        model_type=fields.text("model_type", _WORD),
        hidden_size=fields.integer("hidden_size", 32, 1 << 18),
        intermediate_size=fields.integer("intermediate_size", 32, 1 << 20),
        n_layers=fields.integer("n_layers", 1, 1024),
        n_heads=fields.integer("n_heads", 1, 1024),
        n_kv_heads=fields.integer("n_kv_heads", 1, 1024),
        head_dim=fields.integer("head_dim", 2, 1024),
        vocab_size=fields.integer("vocab_size", 1, 1 << 22),
        rms_norm_eps=fields.number("rms_norm_eps", 0.0, 1.0),
        rope_theta=fields.number("rope_theta", 1.0, 1e12),
        max_position_embeddings=fields.integer("max_position_embeddings", 1, 1 << 27),
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        attention_bias=fields.boolean("attention_bias"),
        mlp_bias=fields.boolean("mlp_bias"),
        rope_scaling=None if scaling is None else _parse_rope_scaling(scaling),
        rope_attention_factor=fields.number("rope_attention_factor", 0.0, 1e3),
        bos_token_id=None if bos is None else fields.integer("bos_token_id", 0, (1 << 31) - 1),
        eos_token_ids=tuple(eos),
    )
    if model.n_heads % model.n_kv_heads:
        raise refuse(f"the manifest's model has {model.n_heads} heads, no multiple of its {model.n_kv_heads} KV heads")
    if model.head_dim % 2:
        raise refuse(f"the manifest's model.head_dim is {model.head_dim}, not an even number")
    return model


def _parse_rope_scaling(value: object) -> RopeScalingSpec:
    fields = Fields(value, "model.rope_scaling", _field_names(RopeScalingSpec))
    numbers = ("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow")
    return RopeScalingSpec(
        kind=fields.text("kind", _WORD),
        original_max_position_embeddings=fields.integer("original_max_position_embeddings", 0, 1 << 27),
        **{key: fields.number(key, 0.0, 1e6) for key in numbers},
    )


def _parse_device(value: object) -> DeviceSpec:
    fields = Fields(value, "device", _field_names(DeviceSpec))
    return DeviceSpec(
        profile=fields.text("profile", _WORD),
        isas=fields.texts("isas", MAX_KERNELS, _WORD),
        triple=fields.text("triple", _WORD),
        cpu=fields.text("cpu", _WORD),
    )


def _parse_file(value: object, index: int) -> FileEntry:
    fields = Fields(value, f"files[{index}]", _field_names(FileEntry))
    role = fields.take("role")
    if not isinstance(role, str) or role not in ROLES:
        raise refuse(f"the manifest's files[{index}].role is not one of {', '.join(ROLES)}")
    path = fields.take("path")
    check_path(path)
    return FileEntry(path, fields.integer("size", 0, ROLES[role][2]), fields.text("sha256", _SHA256), role)


def _parse_kernel(value: object, index: int) -> KernelEntry:
    fields = Fields(value, f"kernels[{index}]", _field_names(KernelEntry))
    path = fields.take("file")
    check_path(path)
    return KernelEntry(
        file=path,
        isa=fields.text("isa", _WORD),
        triple=fields.text("triple", _WORD),
        cpu=fields.text("cpu", _WORD),
        features=fields.texts("features", 512, _FEATURE),
        bits=fields.integers("bits", 1, 16),
        abi=fields.integer("abi", KERNEL_ABI, KERNEL_ABI),
    )


def _parse_tensor(value: object, index: int) -> TensorEntry:
    where = f"tensors[{index}]"
    fields = Fields(value, where, _field_names(TensorEntry))
    name = fields.text("name", _TENSOR_NAME)
    kind = fields.take("kind")
    largest = ROLES["weights"][2]
    entry = TensorEntry(
        name=name,
        kind=kind,
        bits=fields.integer("bits", 2, 32),
        group_size=fields.integer("group_size", 0, 1 << 20),
        out_features=fields.integer("out_features", 1, 1 << 24),
        in_features=fields.integer("in_features", 1, 1 << 24),
        layout=fields.text("layout", _WORD) if fields.take("layout") != "" else "",
        offset=fields.integer("offset", 0, largest),
        nbytes=fields.integer("nbytes", 1, largest),
    )
    if kind == "f32":
        if (entry.bits, entry.group_size, entry.layout, entry.in_features) != (32, 0, "", 1):
            raise refuse(f"tensor {name!r} is f32 and has bits, group size, layout or width of a linear layer")
        if entry.nbytes != 4 * entry.out_features:
            raise refuse(f"tensor {name!r} has {entry.nbytes} bytes, not the {4 * entry.out_features} of its shape")
    elif kind == "linear":
        if entry.bits not in BITS or entry.layout == "":
            raise refuse(f"tensor {name!r} has {entry.bits} bits in layout {entry.layout!r}; known bits: {BITS}")
        if entry.group_size == 0 or entry.group_size % 32 or entry.in_features % entry.group_size:
            raise refuse(
                f"tensor {name!r} has groups of {entry.group_size}, no multiple of 32 that divides {entry.in_features}"
            )
        if entry.nbytes * 8 < entry.out_features * entry.in_features * entry.bits:
            raise refuse(f"tensor {name!r} has {entry.nbytes} bytes, too few for its shape")
    else:
        raise refuse(f"the manifest's {where}.kind is neither linear nor f32")
    return entry


def _check_format(document: Mapping[str, object]) -> None:
    if document.get("format") != FORMAT:
        raise refuse(f"this is not a bundle: its format is {ascii(document.get('format'))[:60]}, not {FORMAT!r}")
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format version {ascii(version)[:20]}; this edgeawq reads version {FORMAT_VERSION}",
            remedy="use the edgeawq version that wrote it, or pack the checkpoint again with this one",
        )


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")
