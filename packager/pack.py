"""Pack a quantized checkpoint for one device: every tensor laid out as the device's kernels read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgeawq
from device_profiles.profile import DeviceProfile
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.rope import compute_rope
from edgeawq.errors import CheckpointError, UnsupportedModelError
from packager.bundle import BundleWriter, add_golden, check_target, dump_json
from packager.manifest import (
    KERNEL_ABI,
    DeviceSpec,
    KernelEntry,
    Manifest,
    ModelSpec,
    RopeScalingSpec,
    TensorEntry,
    expected_tensors,
)
from packager.tensors import TensorSource

# What a bundle's generation.json may set; the names are those of generation_config.json.
SAMPLING_KEYS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# (what, bytes done, bytes in all); first KERNEL_STEP, which may take half a minute, then the tensors' names
Progress = Callable[[str, int, int], None]
KERNEL_STEP = "kernels"
GoldenRecorder = Callable[[Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class PackSummary:
    """What was packed. Sizes in bytes."""

    path: Path
    model: str
    device: str
    isa: str
    layout: str
    n_tensors: int
    bundle_bytes: int  # all files of the manifest
    weight_bytes: int  # weights.bin
    kernel_bytes: int
    n_weights: int  # of all linear layers, embedding and head
    bits_per_weight: float  # scales, zeros and padding included
    bytes_per_token: int  # read from memory to decode one token with an empty KV cache
    notes: tuple[str, ...]  # what was rounded or otherwise worth saying
    golden: bool  # whether the bundle carries a golden answer


def pack_checkpoint(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    output: Path,
    *,
    head_bits: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    golden: GoldenRecorder | None = None,
) -> PackSummary:
    """Write `checkpoint` as a bundle for `profile` into the folder `output`; the same input gives the same bytes.

    The checkpoint's grids are kept bit for bit. An embedding or head that is stored in float is rounded to
    `head_bits` (8 or 4; None = 8, or whatever grid the checkpoint has) and the summary says so. `golden` gets the
    finished bundle before it appears under its name and returns what goes into golden.json.
    Raises CheckpointError for a float model, UnsupportedModelError for one that the format cannot express.
    """
    from cpu_kernels.build import USUAL_BITS, build_object
    from cpu_kernels.isa.catalog import find_isa
    from packager.layouts import LAYOUTS

    check_target(output, overwrite=overwrite)
    target = profile.target
    layout = LAYOUTS[find_isa(target.isa, target.machine).layout]
    source = TensorSource(checkpoint, layout, head_bits)
    model = describe_model(checkpoint)
    files = _text_files(checkpoint)
    shapes = [shape[:4] for shape in expected_tensors(model) if source.has(shape[0])]
    total = sum(source.estimate_bytes(*shape) for shape in shapes)
    if progress is not None:
        progress(KERNEL_STEP, 0, total)
    bits = tuple(sorted({*USUAL_BITS, *source.body_bits}))
    kernel = build_object(target, target.isa, bits)
    with BundleWriter(output, overwrite=overwrite) as writer:
        writer.reserve(total + len(kernel) + sum(len(content) for _, content in files.values()))
        done = 0
        for name, kind, out_features, in_features in shapes:
            data = source.open(name, kind, out_features, in_features)
            entry = writer.add_tensor(
                name,
                data.chunks,
                kind=kind,
                bits=data.bits,
                group_size=data.group_size,
                out_features=out_features,
                in_features=in_features,
                layout=data.layout,
            )
            done += entry.nbytes
            if progress is not None:
                progress(name, min(done, total), total)
        writer.add_file(f"kernels/{target.isa}.o", "kernels", kernel)
        for path, (role, content) in files.items():
            writer.add_file(path, role, content)
        manifest = writer.finish(_make_manifest(model, profile, bits))
        answer = golden(writer.folder) if golden is not None else None
        if answer is not None:
            manifest = add_golden(writer.folder, answer)
        writer.publish()
    return _summarize(manifest, output, layout.name, len(kernel), [*checkpoint.config.notes, *source.notes])


def describe_model(checkpoint: Checkpoint) -> ModelSpec:
    """The manifest's description of the model; raises UnsupportedModelError for what the format cannot express."""
    config = checkpoint.config
    if config.mlp_bias:
        raise UnsupportedModelError(
            f"{checkpoint.name} has biases in its MLP, which bundle format 1 cannot hold",
            remedy="use a model of the Llama family without mlp_bias",
        )
    _, attention_factor = compute_rope(config)
    fields = {key: getattr(config, key) for key in ModelSpec.__dataclass_fields__ if hasattr(config, key)}
    scaling = config.rope_scaling
    fields["rope_scaling"] = None if scaling is None else RopeScalingSpec(**asdict(scaling))
    return ModelSpec(name=_clean_name(checkpoint.name), rope_attention_factor=attention_factor, **fields)


def _make_manifest(model: ModelSpec, profile: DeviceProfile, bits: tuple[int, ...]) -> Manifest:
    target = profile.target
    return Manifest(
        tool_name="edgeawq",
        tool_version=edgeawq.__version__,
        model=model,
        device=DeviceSpec(profile.name, (target.isa,), target.triple, target.cpu),
        files=(),
        kernels=(
            KernelEntry(
                file=f"kernels/{target.isa}.o",
                isa=target.isa,
                triple=target.triple,
                cpu=target.cpu,
                features=target.features,
                bits=bits,
                abi=KERNEL_ABI,
            ),
        ),
        tensors=(),
    )


def _text_files(checkpoint: Checkpoint) -> dict[str, tuple[str, bytes]]:
    """path → (role, content) of tokenizer, chat template and generation defaults."""
    tokenizer = checkpoint.tokenizer
    files = {"tokenizer.json": ("tokenizer", tokenizer.tokenizer_json.encode("utf-8"))}
    if tokenizer.chat_template is not None:
        files["chat_template.jinja"] = ("chat_template", tokenizer.chat_template.encode("utf-8"))
    defaults = checkpoint.generation_defaults
    generation = {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "add_bos_token": tokenizer.add_bos_token,
        "stop_token_ids": sorted(_stop_tokens(checkpoint.config, tokenizer.tokenizer_json, tokenizer.eos_token)),
        "defaults": {key: defaults[key] for key in SAMPLING_KEYS if key in defaults},
    }
    files["generation.json"] = ("generation", dump_json(generation))
    return files


def _stop_tokens(config: ModelConfig, tokenizer_json: str, eos_token: str | None) -> set[int]:
    """The ids that end an answer: those of the model's configuration, and the tokenizer's end token."""
    stops = set(config.eos_token_ids)
    try:
        added = json.loads(tokenizer_json).get("added_tokens") or []
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"tokenizer.json is not valid: {str(error)[:100]}", remedy="copy the model folder again"
        ) from None
    return stops | {int(token["id"]) for token in added if token.get("content") == eos_token}


def _summarize(manifest: Manifest, output: Path, layout: str, kernel_bytes: int, notes: list[str]) -> PackSummary:
    linears = [entry for entry in manifest.tensors if entry.kind == "linear"]
    n_weights = sum(entry.out_features * entry.in_features for entry in linears)
    weights = manifest.file("weights")
    assert weights is not None  # finish() put it there
    return PackSummary(
        path=output,
        model=manifest.model.name,
        device=manifest.device.profile,
        isa=manifest.kernels[0].isa,
        layout=layout,
        n_tensors=len(manifest.tensors),
        bundle_bytes=sum(entry.size for entry in manifest.files),
        weight_bytes=weights.size,
        kernel_bytes=kernel_bytes,
        n_weights=n_weights,
        bits_per_weight=8 * sum(entry.nbytes for entry in linears) / n_weights,
        bytes_per_token=count_bytes_per_token(manifest.tensors, manifest.model.tie_word_embeddings),
        notes=tuple(notes),
        golden=manifest.file("golden") is not None,
    )


def count_bytes_per_token(tensors: tuple[TensorEntry, ...], tied: bool) -> int:
    """Bytes of weights that decoding one token reads: all of them, but of an untied embedding only one row."""
    total = 0
    for entry in tensors:
        if entry.name == "embed" and not tied:
            total += entry.nbytes // entry.out_features
        else:
            total += entry.nbytes
    return total


def _clean_name(name: str) -> str:
    """The model's name in the characters that a manifest allows."""
    cleaned = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).lstrip("._+-")[:100]
    return cleaned or "model"
