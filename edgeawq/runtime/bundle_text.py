"""The text side of a bundle: tokenizer, chat template and generation defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeawq.errors import BundleError, UsageError
from edgeawq.runtime.chat_template import ChatTemplate
from edgeawq.runtime.sampler import SamplerSettings
from edgeawq.runtime.tokenizer import MAX_TOKENIZER_BYTES, Tokenizer
from packager.bundle_files import open_bundle_file
from packager.manifest import Manifest
from packager.manifest_reader import read_manifest

MAX_SMALL_FILE_BYTES = 1 << 20  # generation.json, chat_template.jinja, golden.json

# Used for what a model's own generation defaults leave open. Small models wander at the 0.7 that is usual for large
# ones; this is what SmolLM2's authors recommend.
DEFAULT_SAMPLING = SamplerSettings(temperature=0.2, top_p=0.9)

_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class BundleText:
    """What turns a bundle's tokens into a conversation."""

    model_name: str
    device_name: str  # the profile that the bundle was packed for
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: SamplerSettings
    stop_token_ids: frozenset[int]


def open_bundle_text(folder: Path, *, vocabulary_folder: Path | None = None) -> BundleText:
    """Read the text side of the bundle in `folder`; BundleError when a file is missing, too large or malformed.

    `vocabulary_folder` keeps what makes the next start quick.
    """
    manifest = read_manifest(folder)
    defaults = _read_generation(folder, manifest)
    bos_token, eos_token = _read_text(defaults, "bos_token"), _read_text(defaults, "eos_token")
    tokenizer = Tokenizer.from_json(
        _read_file(folder, manifest, "tokenizer", MAX_TOKENIZER_BYTES),
        add_bos_token=bos_token if defaults.get("add_bos_token") and bos_token else None,
        vocabulary_folder=vocabulary_folder,
    )
    has_template = manifest.file("chat_template") is not None
    source = _read_file(folder, manifest, "chat_template", MAX_SMALL_FILE_BYTES) if has_template else None
    return BundleText(
        model_name=manifest.model.name,
        device_name=manifest.device.profile,
        tokenizer=tokenizer,
        template=ChatTemplate(source, bos_token=bos_token, eos_token=eos_token),
        sampling=read_sampling(defaults),
        stop_token_ids=_read_stop_ids(defaults) | frozenset(manifest.model.eos_token_ids),
    )


def read_sampling(defaults: Mapping[str, Any]) -> SamplerSettings:
    """Sampler settings from generation defaults (Hugging Face's names); BundleError when they make no sense."""
    given = {name: defaults[name] for name in _SAMPLING_FIELDS if defaults.get(name) is not None}
    try:
        if defaults.get("do_sample") is False:
            return SamplerSettings(repetition_penalty=given.get("repetition_penalty", 1.0))
        return replace(DEFAULT_SAMPLING, **given)
    except UsageError as error:
        raise BundleError(
            f"the generation defaults of the bundle are wrong: {error.what}", remedy="pack the bundle again"
        ) from error


def read_json_file(folder: Path, manifest: Manifest, role: str) -> dict[str, Any]:
    """The JSON object in the bundle's file of `role`; BundleError when it is absent, too large or malformed."""
    try:
        value = json.loads(_read_file(folder, manifest, role, MAX_SMALL_FILE_BYTES))
    except (ValueError, RecursionError) as error:
        raise _refuse(folder, role, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise _refuse(folder, role, "is not a JSON object")
    return value


def _read_generation(folder: Path, manifest: Manifest) -> dict[str, Any]:
    document = read_json_file(folder, manifest, "generation")
    nested = document.pop("defaults", {})
    if not isinstance(nested, dict):
        raise _refuse(folder, "generation", "has 'defaults' that are not an object")
    return {**document, **nested}


def _read_file(folder: Path, manifest: Manifest, role: str, limit: int) -> str:
    entry = manifest.file(role)
    if entry is None:
        raise _refuse(folder, role, "is missing")
    with open_bundle_file(folder, entry.path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _refuse(folder, role, f"is larger than the limit of {limit} bytes")
    if len(data) != entry.size:
        raise _refuse(folder, role, f"has {len(data)} bytes, the manifest says {entry.size}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refuse(folder, role, "is not UTF-8 text") from error


def _read_text(defaults: Mapping[str, Any], key: str) -> str:
    value = defaults.get(key)
    if value is not None and not isinstance(value, str):
        raise BundleError(f"{key} in generation.json is {value!r}, not text", remedy="pack the bundle again")
    return value or ""


def _read_stop_ids(defaults: Mapping[str, Any]) -> frozenset[int]:
    value = defaults.get("stop_token_ids", [])
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise BundleError(
            f"stop_token_ids in generation.json is {value!r}, not a list of token ids", remedy="pack the bundle again"
        )
    return frozenset(value)


def _refuse(folder: Path, role: str, what: str) -> BundleError:
    return BundleError(
        f"the {role} file of {folder} {what}", remedy="pack the checkpoint again with `edgeawq pack`, or push it again"
    )
