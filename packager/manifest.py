"""The bundle's manifest: what it says, and a reader that believes nothing it has not checked.

Standard library only: the runtime on a device imports this module and nothing else of the packager.
The format is written down in docs/design/0001-bundle-format.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeawq.errors import BundleError

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

_REMEDY = "pack the checkpoint again with `edgeawq pack`, or copy the bundle again"
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,127}")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_TENSOR_NAME = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32}){0,3}")
_FEATURE = re.compile(r"[+-][a-z0-9][a-z0-9_.-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest; anything unknown, missing, out of bounds or unsafe raises BundleError.

    Refused: another format or version, keys that are unknown or given twice, absolute paths, "..", backslashes,
    names outside the safe characters, duplicate names, tensors outside weights.bin, misaligned or overlapping,
    and a list of tensors that is not what the model needs.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _refuse(f"the manifest has {len(data)} bytes, the limit is {MAX_MANIFEST_BYTES}")
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise _refuse(f"the manifest is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise _refuse("the manifest is not a JSON object")
    _check_format(document)
    top = _Fields(document, "", {"format", "format_version", "tool", "model", "device", "files", "kernels", "tensors"})
    tool = _Fields(top.take("tool"), "tool", {"name", "version"})
    manifest = Manifest(
        tool_name=tool.text("name", _WORD),
        tool_version=tool.text("version", _WORD),
        model=_parse_model(top.take("model")),
        device=_parse_device(top.take("device")),
        files=tuple(_parse_file(value, i) for i, value in enumerate(top.items("files", MAX_FILES))),
        kernels=tuple(_parse_kernel(value, i) for i, value in enumerate(top.items("kernels", MAX_KERNELS))),
        tensors=tuple(_parse_tensor(value, i) for i, value in enumerate(top.items("tensors", MAX_TENSORS))),
    )
    _check_files(manifest)
    _check_kernels(manifest)
    _check_placement(manifest)
    _check_shapes(manifest)
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


def open_bundle_file(folder: Path, path: str) -> BinaryIO:
    """Open a bundle's file for reading; links, devices and paths that leave `folder` are refused.

    The folder itself may be reached through a link (a release's `current` is one); nothing below it may be.
    """
    _check_path(path)
    current = folder
    try:
        for part in path.split("/")[:-1]:
            current = current / part
            if not stat.S_ISDIR(os.lstat(current).st_mode):
                raise _refuse(f"{current} is not a folder")
        descriptor = os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refuse(f"cannot open {folder / path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refuse(f"{folder / path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def verify_files(folder: Path, manifest: Manifest, progress: Callable[[int, int], None] | None = None) -> None:
    """Compare every file's size and SHA-256 with the manifest; `progress` gets (bytes done, bytes in all)."""
    total = sum(entry.size for entry in manifest.files)
    done = 0
    for entry in manifest.files:
        with open_bundle_file(folder, entry.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise _refuse(f"{folder / entry.path} has {size} bytes, the manifest says {entry.size}")
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        if digest.hexdigest() != entry.sha256:
            raise _refuse(
                f"{folder / entry.path} is damaged: its SHA-256 is {digest.hexdigest()[:16]}…,"
                f" the manifest says {entry.sha256[:16]}…"
            )


class _Fields:
    """One JSON object whose keys are exactly the ones that the format knows."""

    def __init__(self, value: object, where: str, keys: set[str]) -> None:
        if not isinstance(value, dict):
            raise _refuse(f"the manifest's {where or 'content'} is not an object")
        if value.keys() != keys:
            unknown, missing = sorted(value.keys() - keys), sorted(keys - value.keys())
            wrong = f"unknown {ascii(unknown[0])[:60]}" if unknown else f"missing {missing[0]!r}"
            raise _refuse(f"the manifest's {where or 'content'} has the wrong keys: {wrong}")
        self._value = value
        self._where = where

    def take(self, key: str) -> Any:
        return self._value[key]

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._wrong(key, f"text that matches {pattern.pattern}")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self._value[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"a number from {low} to {high}")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._value[key]
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def items(self, key: str, limit: int) -> list[Any]:
        value = self._value[key]
        if not isinstance(value, list) or len(value) > limit:
            raise self._wrong(key, f"a list of at most {limit} entries")
        return value

    def texts(self, key: str, limit: int, pattern: re.Pattern[str]) -> tuple[str, ...]:
        values = self.items(key, limit)
        if not all(isinstance(value, str) and pattern.fullmatch(value) for value in values):
            raise self._wrong(key, f"a list of texts that match {pattern.pattern}")
        return tuple(values)

    def integers(self, key: str, low: int, limit: int) -> tuple[int, ...]:
        """Different whole numbers from `low` to `limit`, ascending."""
        values = self.items(key, limit)
        if not all(
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= limit for value in values
        ):
            raise self._wrong(key, f"a list of integers from {low} to {limit}")
        if values != sorted(set(values)):
            raise self._wrong(key, "ascending")
        return tuple(values)

    def _wrong(self, key: str, wanted: str) -> BundleError:
        shown = ascii(self._value[key])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return _refuse(f"the manifest's {self._where + '.' if self._where else ''}{key} is {shown}, not {wanted}")


def _field_names(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _parse_model(value: object) -> ModelSpec:
    fields = _Fields(value, "model", _field_names(ModelSpec))
    scaling = fields.take("rope_scaling")
    bos = fields.take("bos_token_id")
    eos = fields.items("eos_token_ids", 64)
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in eos):
        raise _refuse("the manifest's model.eos_token_ids are not token ids")
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
        raise _refuse(f"the manifest's model has {model.n_heads} heads, no multiple of its {model.n_kv_heads} KV heads")
    if model.head_dim % 2:
        raise _refuse(f"the manifest's model.head_dim is {model.head_dim}, not an even number")
    return model


def _parse_rope_scaling(value: object) -> RopeScalingSpec:
    fields = _Fields(value, "model.rope_scaling", _field_names(RopeScalingSpec))
    numbers = ("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow")
    return RopeScalingSpec(
        kind=fields.text("kind", _WORD),
        original_max_position_embeddings=fields.integer("original_max_position_embeddings", 0, 1 << 27),
        **{key: fields.number(key, 0.0, 1e6) for key in numbers},
    )


def _parse_device(value: object) -> DeviceSpec:
    fields = _Fields(value, "device", _field_names(DeviceSpec))
    return DeviceSpec(
        profile=fields.text("profile", _WORD),
        isas=fields.texts("isas", MAX_KERNELS, _WORD),
        triple=fields.text("triple", _WORD),
        cpu=fields.text("cpu", _WORD),
    )


def _parse_file(value: object, index: int) -> FileEntry:
    fields = _Fields(value, f"files[{index}]", _field_names(FileEntry))
    role = fields.take("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _refuse(f"the manifest's files[{index}].role is not one of {', '.join(ROLES)}")
    path = fields.take("path")
    _check_path(path)
    return FileEntry(path, fields.integer("size", 0, ROLES[role][2]), fields.text("sha256", _SHA256), role)


def _parse_kernel(value: object, index: int) -> KernelEntry:
    fields = _Fields(value, f"kernels[{index}]", _field_names(KernelEntry))
    path = fields.take("file")
    _check_path(path)
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
    fields = _Fields(value, where, _field_names(TensorEntry))
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
            raise _refuse(f"tensor {name!r} is f32 and has bits, group size, layout or width of a linear layer")
        if entry.nbytes != 4 * entry.out_features:
            raise _refuse(f"tensor {name!r} has {entry.nbytes} bytes, not the {4 * entry.out_features} of its shape")
    elif kind == "linear":
        if entry.bits not in BITS or entry.layout == "":
            raise _refuse(f"tensor {name!r} has {entry.bits} bits in layout {entry.layout!r}; known bits: {BITS}")
        if entry.group_size == 0 or entry.group_size % 32 or entry.in_features % entry.group_size:
            raise _refuse(
                f"tensor {name!r} has groups of {entry.group_size}, no multiple of 32 that divides {entry.in_features}"
            )
        if entry.nbytes * 8 < entry.out_features * entry.in_features * entry.bits:
            raise _refuse(f"tensor {name!r} has {entry.nbytes} bytes, too few for its shape")
    else:
        raise _refuse(f"the manifest's {where}.kind is neither linear nor f32")
    return entry


def _check_format(document: Mapping[str, object]) -> None:
    if document.get("format") != FORMAT:
        raise _refuse(f"this is not a bundle: its format is {ascii(document.get('format'))[:60]}, not {FORMAT!r}")
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format version {ascii(version)[:20]}; this edgeawq reads version {FORMAT_VERSION}",
            remedy="use the edgeawq version that wrote it, or pack the checkpoint again with this one",
        )


def _check_path(path: object) -> None:
    if not isinstance(path, str) or not 0 < len(path) <= 255:
        raise _refuse("a path in the manifest is not a text of 1 to 255 characters")
    parts = path.split("/")
    # A part may not start with a dot, so "..", "." and hidden names fall out together with the empty part of "/etc".
    if len(parts) > 4 or not all(_PATH_PART.fullmatch(part) for part in parts):
        raise _refuse(f"the path {ascii(path)[:80]} in the manifest is not a plain relative path")


def _check_files(manifest: Manifest) -> None:
    # Case is folded because some file systems do, and one file would then overwrite the other.
    _check_unique((entry.path.casefold() for entry in manifest.files), "file")
    for role, (least, most, _) in ROLES.items():
        count = sum(entry.role == role for entry in manifest.files)
        if not least <= count <= most:
            raise _refuse(f"the manifest lists {count} files of role {role!r}, not {least} to {most}")
    folders: set[str] = set()
    for entry in manifest.files:
        parts = entry.path.casefold().split("/")
        folders.update("/".join(parts[:count]) for count in range(1, len(parts)))
    for entry in manifest.files:
        if entry.path.casefold() in folders or entry.path.casefold() == MANIFEST_NAME:
            raise _refuse(f"the path {entry.path!r} in the manifest collides with another name")


def _check_kernels(manifest: Manifest) -> None:
    files = sorted(entry.path for entry in manifest.files if entry.role == "kernels")
    if sorted(kernel.file for kernel in manifest.kernels) != files:
        raise _refuse("the manifest's kernels are not exactly its files of role 'kernels'")
    isas = [kernel.isa for kernel in manifest.kernels]
    _check_unique(isas, "kernel for the instruction set")
    if sorted(isas) != sorted(manifest.device.isas):
        raise _refuse("the manifest's kernels are not for exactly the device's instruction sets")
    needed = {tensor.bits for tensor in manifest.tensors if tensor.kind == "linear"}
    for kernel in manifest.kernels:
        if not needed <= set(kernel.bits):
            raise _refuse(f"{kernel.file} takes weights of {kernel.bits} bits, the tensors have {sorted(needed)}")


def _check_placement(manifest: Manifest) -> None:
    _check_unique((tensor.name for tensor in manifest.tensors), "tensor")
    weights = manifest.file("weights")
    limit = 0 if weights is None else weights.size
    end = 0
    for tensor in sorted(manifest.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset % ALIGNMENT:
            raise _refuse(f"tensor {tensor.name!r} starts at {tensor.offset}, no multiple of {ALIGNMENT}")
        if tensor.offset < end:
            raise _refuse(f"tensor {tensor.name!r} at {tensor.offset} overlaps the one before, which ends at {end}")
        end = tensor.offset + tensor.nbytes
        if end > limit:
            raise _refuse(f"tensor {tensor.name!r} ends at {end}, beyond the {limit} bytes of the weights")


def _check_shapes(manifest: Manifest) -> None:
    given = {tensor.name: tensor for tensor in manifest.tensors}
    for name, kind, out_features, in_features, required in expected_tensors(manifest.model):
        tensor = given.pop(name, None)
        if tensor is None:
            if required:
                raise _refuse(f"tensor {name!r} is missing")
        elif (tensor.kind, tensor.out_features, tensor.in_features) != (kind, out_features, in_features):
            raise _refuse(
                f"tensor {name!r} is {tensor.kind} [{tensor.out_features}, {tensor.in_features}],"
                f" the model needs {kind} [{out_features}, {in_features}]"
            )
    if given:
        raise _refuse(f"unknown tensors: {', '.join(sorted(given)[:3])}")


def _check_unique(names: Iterator[str] | Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _refuse(f"the manifest lists the {what} {name!r} twice")
        seen.add(name)


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _refuse(what: str) -> BundleError:
    return BundleError(what, remedy=_REMEDY)
