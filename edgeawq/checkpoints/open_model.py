"""One door for every kind of model reference."""

from __future__ import annotations

import difflib
from pathlib import Path

from edgeawq.checkpoints.awq_folder import AwqFolder
from edgeawq.checkpoints.embedded_model import EMBEDDED_REFERENCE, EMBEDDED_SCHEME, open_embedded
from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.checkpoints.gguf_header import MAGIC
from edgeawq.checkpoints.hf_folder import HfFolder
from edgeawq.checkpoints.hub import HUB_ID, download_model
from edgeawq.checkpoints.json_file import read_json_object
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.weight_files import PICKLE_SUFFIXES, refuse_pickle
from edgeawq.errors import CheckpointError, UsageError

EXAMPLE_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_SUFFIXES = (".gguf", ".safetensors", *PICKLE_SUFFIXES)


def open_model(reference: str) -> Checkpoint:
    """Open a model by whatever a user may call it; reads headers only.

    `reference` is a Hugging Face or AutoAWQ folder, a .gguf file, `embedded:smollm2-135m-instruct`, or a hub id such
    as "HuggingFaceTB/SmolLM2-135M-Instruct". A path that exists wins over a hub id. Raises CheckpointError (or one of
    its kinds) for a model that cannot be used, UsageError for a reference that is none of these, MissingExtraError
    where a package is missing.
    """
    if reference.startswith(EMBEDDED_SCHEME):
        return open_embedded(reference)
    path = Path(reference).expanduser()
    if reference and path.exists():
        return open_folder(path) if path.is_dir() else open_file(path)
    if HUB_ID.fullmatch(reference) and not looks_like_path(reference):
        return open_folder(download_model(reference), name=reference.split("/")[1])
    raise UsageError(f"there is no model {reference!r}", remedy=suggest(reference, path))


def open_folder(folder: Path, name: str = "") -> Checkpoint:
    """Open a Hugging Face folder, quantized by AWQ or in float."""
    if not (folder / "config.json").is_file():
        raise describe_foreign_folder(folder)
    config = read_json_object(folder / "config.json")
    if config.get("quantization_config") is not None:
        return AwqFolder(folder, name)
    return HfFolder(folder, name)


def open_file(path: Path) -> Checkpoint:
    """Open a model that is one file, a GGUF; raises UnsafeFileError for a pickle."""
    refuse_pickle(path)
    if path.suffix.lower() == ".safetensors":
        raise UsageError(
            f"{path} holds weights only; a model is a folder with config.json and tokenizer.json beside it",
            remedy=f"give the folder: {path.parent}",
        )
    if path.suffix.lower() != ".gguf":
        try:
            with path.open("rb") as file:
                starts_as_gguf = file.read(len(MAGIC)) == MAGIC
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        if not starts_as_gguf:
            raise CheckpointError(
                f"{path} is neither a GGUF file nor a model folder", remedy="give a model folder or a .gguf file"
            )
    return GgufCheckpoint(path)


def describe_foreign_folder(folder: Path) -> CheckpointError:
    """The error for a folder without config.json: says what is in it instead."""
    names = sorted(path.name for path in folder.iterdir())
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    if gguf:
        return CheckpointError(
            f"{folder} has no config.json but GGUF files", remedy=f"give the file: {folder / gguf[0]}"
        )
    if "adapter_config.json" in names:
        return CheckpointError(
            f"{folder} holds an adapter (LoRA), not a whole model",
            remedy="merge it into its base model first (peft: merge_and_unload, save_pretrained) and give that folder",
        )
    if "manifest.json" in names:
        return CheckpointError(
            f"{folder} is a bundle, already packed for a device", remedy="give the checkpoint that it was packed from"
        )
    inner = [name for name in names if (folder / name / "config.json").is_file()]
    return CheckpointError(
        f"{folder} has no config.json, so it is not a model folder ({len(names)} entries)",
        remedy=f"did you mean {folder / inner[0]}?" if inner else "give the folder that holds config.json",
    )


def looks_like_path(reference: str) -> bool:
    """Whether "a/b" that does not exist was meant as a path: it starts as one, ends as a file, or its folder exists."""
    return (
        reference.startswith((".", "/", "~"))
        or reference.lower().endswith(MODEL_SUFFIXES)
        or Path(reference).parts[0] in (".", "..")
        or Path(reference).parent.is_dir()
    )


def suggest(reference: str, path: Path) -> str:
    """What to try instead of a reference that names nothing: entries with a similar name, or what is possible."""
    known = {
        EMBEDDED_REFERENCE: EMBEDDED_REFERENCE,
        EMBEDDED_REFERENCE.removeprefix(EMBEDDED_SCHEME): EMBEDDED_REFERENCE,
    }
    parent = path.parent
    if parent.is_dir():
        try:
            known |= {entry.name: str(parent / entry.name) for entry in parent.iterdir()}
        except OSError:
            # A folder that cannot be listed has no suggestions to make.
            known = dict(known)
    wanted = path.name or reference
    by_lower = {name.lower(): value for name, value in known.items()}
    close = difflib.get_close_matches(wanted.lower(), list(by_lower), n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(dict.fromkeys(by_lower[name] for name in close)) + "?"
    return f"give a model folder, a .gguf file, a hub id (such as {EXAMPLE_HUB_ID}), or {EMBEDDED_REFERENCE}"
