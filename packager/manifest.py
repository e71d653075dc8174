"""The bundle's manifest: what it says, and how it is written. `packager.manifest_reader` reads it.

Standard library only: the runtime on a device imports it. The format is written down in
docs/design/0001-bundle-format.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FORMAT = "edgeawq-bundle"
FORMAT_VERSION = 1
KERNEL_ABI = 4
MANIFEST_NAME = "manifest.json"
ALIGNMENT = 64  # bytes; a cache line on every CPU that has a profile

MAX_MANIFEST_BYTES = 16 << 20
MAX_TENSORS = 1 << 16
MAX_KERNELS = 16
MAX_FILES = 64
# role -> (least, most number of files, most bytes of one): a reader may take a file of known role into memory whole.
ROLES: Mapping[str, tuple[int, int, int]] = {
    "weights": (1, 1, 1 << 42),
    "kernels": (1, MAX_KERNELS, 64 << 20),
    "tokenizer": (1, 1, 256 << 20),
    "chat_template": (0, 1, 1 << 20),
    "generation": (1, 1, 1 << 20),
    "golden": (0, 1, 1 << 20),
}
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class RopeScalingSpec:
    """The rope scaling that is already part of the tensor `rope_inv_freq`; kept to tell people what was applied."""

    kind: str
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class ModelSpec:
    """Shape and constants of the decoder; the fields of `edgeawq.checkpoints.config.ModelConfig`, and the name."""

    name: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    rope_scaling: RopeScalingSpec | None
    rope_attention_factor: float  # cosines and sines are multiplied by it (yarn); otherwise 1
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class DeviceSpec:
    """What the bundle was packed for."""

    profile: str
    isas: tuple[str, ...]
    triple: str
    cpu: str


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle; `path` is relative to the bundle's folder, with forward slashes."""

    path: str
    size: int  # bytes
    sha256: str  # lower-case hex
    role: str  # a key of `ROLES`


@dataclass(frozen=True)
class KernelEntry:
    """One native object and what it was compiled for."""

    file: str  # path of a file with the role "kernels"
    isa: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    bits: tuple[int, ...]  # widths of the weights that its kernels take, ascending
    abi: int


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of weights.bin.

    kind "linear": a quantized matrix [out_features, in_features] in the nibble layout `layout`.
    kind "f32": a float32 vector [out_features]; in_features is 1, bits 32, group_size 0, layout "".
    """

    name: str
    kind: str
    bits: int
    group_size: int
    out_features: int
    in_features: int
    layout: str
    offset: int  # bytes from the start of weights.bin, a multiple of `ALIGNMENT`
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """A bundle's manifest, every field checked."""

    tool_name: str
    tool_version: str
    model: ModelSpec
    device: DeviceSpec
    files: tuple[FileEntry, ...]
    kernels: tuple[KernelEntry, ...]
    tensors: tuple[TensorEntry, ...]

    def file(self, role: str) -> FileEntry | None:
        """The first file of `role`, or None."""
        return next((entry for entry in self.files if entry.role == role), None)

    def tensor(self, name: str) -> TensorEntry | None:
        """The tensor called `name`, or None."""
        return next((entry for entry in self.tensors if entry.name == name), None)


def expected_tensors(model: ModelSpec) -> Iterator[tuple[str, str, int, int, bool]]:
    """Every tensor that weights.bin of `model` may hold: (name, kind, out_features, in_features, required)."""
    hidden, wide = model.hidden_size, model.n_heads * model.head_dim
    qkv = wide + 2 * model.n_kv_heads * model.head_dim
    yield "embed", "linear", model.vocab_size, hidden, True
    for i in range(model.n_layers):
        yield f"layers.{i}.input_norm", "f32", hidden, 1, True
        yield f"layers.{i}.qkv", "linear", qkv, hidden, True
        yield f"layers.{i}.o", "linear", hidden, wide, True
        if model.attention_bias:
            yield f"layers.{i}.qkv_bias", "f32", qkv, 1, False
            yield f"layers.{i}.o_bias", "f32", hidden, 1, False
        yield f"layers.{i}.post_norm", "f32", hidden, 1, True
        yield f"layers.{i}.gate_up", "linear", 2 * model.intermediate_size, hidden, True
        yield f"layers.{i}.down", "linear", hidden, model.intermediate_size, True
    yield "final_norm", "f32", hidden, 1, True
    yield "rope_inv_freq", "f32", model.head_dim // 2, 1, True
    if not model.tie_word_embeddings:
        yield "head", "linear", model.vocab_size, hidden, True


def dump_manifest(manifest: Manifest) -> bytes:
    """Write `manifest` as JSON: sorted keys, no time stamps, so that the same manifest gives the same bytes."""
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool": {"name": manifest.tool_name, "version": manifest.tool_version},
        **{key: dataclasses.asdict(getattr(manifest, key)) for key in ("model", "device")},
        **{key: [dataclasses.asdict(e) for e in getattr(manifest, key)] for key in ("files", "kernels", "tensors")},
    }
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")
