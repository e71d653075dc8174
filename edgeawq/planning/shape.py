"""A model's shape from whatever a user names: a folder, a config.json, a GGUF file, or a well-known name."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.embedded_model import EMBEDDED_SCHEME
from edgeawq.checkpoints.experts import refuse_experts
from edgeawq.checkpoints.hf_config import read_hf_config
from edgeawq.checkpoints.json_file import read_json_object, read_optional_json_object
from edgeawq.checkpoints.model import QuantizationConfig
from edgeawq.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model. reference: how later commands name it, "" where there is no such model."""

    name: str
    config: ModelConfig
    reference: str
    quantization: QuantizationConfig | None = None  # of a checkpoint that is quantized already
    tokenizer_bytes: int | None = None  # None: not at hand


def read_shape(reference: str) -> ModelShape:
    """The shape of a model; reads config.json or a GGUF file's header, never a weight.

    `reference` is a model folder, a config.json, a .gguf file, "embedded:…", or a name of `list_architectures`.
    A path that exists wins over a name. Raises UsageError for anything else, CheckpointError for a broken file.
    """
    if not reference:
        raise UsageError("no model is named", remedy="give a folder, a config.json, a GGUF file or a known name")
    path = Path(reference).expanduser()
    if not reference.startswith(EMBEDDED_SCHEME) and path.exists():
        if path.is_dir() and (path / CONFIG_NAME).is_file():
            return _read_config(path / CONFIG_NAME, path.resolve().name, reference)
        if path.is_file() and path.suffix == ".json":
            folder = path.resolve().parent
            has_weights = any(folder.glob("*.safetensors"))
            return _read_config(
                path, folder.name if path.name == CONFIG_NAME else path.stem, str(path.parent) if has_weights else ""
            )
        return _read_header(reference)
    if reference.startswith(EMBEDDED_SCHEME):
        return _read_header(reference)
    known = _load_architectures()
    name = _normalize(reference)
    if name in known:
        return ModelShape(name, read_hf_config(known[name], {}, name), "")
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UsageError(
        f"there is no model {reference!r}: no file, and no known name",
        remedy=(f"did you mean {' or '.join(close)}? " if close else "")
        + f"known names: {', '.join(known)}; or give a folder, a config.json or a GGUF file",
    )


def list_architectures() -> list[str]:
    """The names that need no file."""
    return list(_load_architectures())


def _read_config(path: Path, name: str, reference: str) -> ModelShape:
    document = read_json_object(path)
    generation = read_optional_json_object(path.with_name("generation_config.json"))
    config = read_hf_config(document, generation, str(path.parent))
    quantization = None
    if document.get("quantization_config") is not None:
        from edgeawq.checkpoints.awq_folder import read_quantization

        quantization = read_quantization(config.extra, str(path.parent))
    refuse_experts(config, str(path.parent))
    tokenizer = path.with_name("tokenizer.json")
    return ModelShape(name, config, reference, quantization, tokenizer.stat().st_size if tokenizer.is_file() else None)


def _read_header(reference: str) -> ModelShape:
    from edgeawq.checkpoints.open_model import open_model

    checkpoint = open_model(reference)
    return ModelShape(checkpoint.name, checkpoint.config, reference, checkpoint.quantization)


def _normalize(name: str) -> str:
    """A hub id or a name in any case: "meta-llama/Llama-2-7b-hf" is llama-2-7b, "Llama2-7B" too."""
    plain = name.rpartition("/")[2].lower().replace("_", "-")
    for suffix in ("-hf", "-instruct", "-chat", "-it", "-base", "-chat-v1.0", "-chat-hf"):
        plain = plain.removesuffix(suffix)
    if plain.removeprefix("llama")[:1].isdigit():
        plain = f"llama-{plain.removeprefix('llama')}"
    return plain.replace("meta-llama-", "llama-")


@lru_cache(maxsize=1)
def _load_architectures() -> dict[str, dict[str, Any]]:
    text = (resources.files("edgeawq.planning") / "architectures.toml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = tomllib.loads(text)
    return loaded
