"""The header of a GGUF file: metadata and the table of tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Read here and not
with the `gguf` library's reader, which builds several numpy arrays per token (seconds for a vocabulary of 49,000) and
does not bound what a damaged file asks for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeawq.checkpoints.mapped_file import MappedFile
from edgeawq.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_ENTRIES = 1 << 16  # metadata keys; real files have tens
MAX_TENSORS = 1 << 20
MAX_NAME_BYTES = 1 << 16
MAX_DIMENSIONS = 4
MAX_NESTING = 4

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
STRING = 8
ARRAY = 9


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. `shape` is in numpy's order (rows first); `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    version: int
    metadata: dict[str, object] = field(repr=False)
    tensors: dict[str, GgufTensor] = field(repr=False)


def read_header(file: MappedFile) -> GgufHeader:
    """Read and check a GGUF header; raises CheckpointError naming the byte where it stops making sense."""
    magic = file.read(0, min(4, file.size), "the magic number")
    if magic != MAGIC:
        raise CheckpointError(
            f"{file.path} is not a GGUF file: it starts with {magic!r}, not {MAGIC!r} ({file.size:,} bytes)",
            remedy="if it was downloaded, check that it is not an error page or a Git LFS pointer",
        )
    return _HeaderReader(file).read()


class _HeaderReader:
    """A position in the file that moves on with every value read."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = len(MAGIC)

    def read(self) -> GgufHeader:
        version = self.read_integer(U32, "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise CheckpointError(
                f"{self.file.path}: GGUF version {version:#x} is not supported (known: 2 and 3"
                + (", little-endian; this file is big-endian)" if swapped else ")"),
                remedy="convert the model again with a current llama.cpp",
            )
        n_tensors = self.read_count(U64, MAX_TENSORS, "tensors")
        n_entries = self.read_count(U64, MAX_ENTRIES, "metadata entries")
        metadata: dict[str, object] = {}
        for _ in range(n_entries):
            key = self.read_string("a metadata key", MAX_NAME_BYTES)
            if key in metadata:
                self.fail(f"the metadata key {key!r} is there twice")
            metadata[key] = self.read_value(self.read_integer(U32, f"the type of {key}"), key, 0)
        tensors = self.read_tensor_table(n_tensors)
        start = self.align(metadata)
        moved = {
            tensor.name: GgufTensor(tensor.name, tensor.shape, tensor.type_id, start + tensor.offset)
            for tensor in tensors.values()
        }
        return GgufHeader(version=version, metadata=metadata, tensors=moved)

    def read_tensor_table(self, n_tensors: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        for _ in range(n_tensors):
            name = self.read_string("a tensor's name", MAX_NAME_BYTES)
            if name in tensors:
                self.fail(f"the tensor {name!r} is there twice")
            n_dimensions = self.read_count(U32, MAX_DIMENSIONS, f"dimensions of {name}")
            sizes = [self.read_integer(U64, f"the shape of {name}") for _ in range(n_dimensions)]
            type_id = self.read_integer(U32, f"the type of {name}")
            offset = self.read_integer(U64, f"the offset of {name}")
            # GGUF lists the fastest dimension first.
            tensors[name] = GgufTensor(name, tuple(reversed(sizes)), type_id, offset)
        return tensors

    def align(self, metadata: Mapping[str, object]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}, which is not a power of two up to {MAX_ALIGNMENT}")
        assert isinstance(alignment, int)
        return -(-self.position // alignment) * alignment

    def read_value(self, type_id: int, key: str, depth: int) -> object:
        if type_id == STRING:
            return self.read_string(key, self.file.size)
        if type_id == ARRAY:
            if depth >= MAX_NESTING:
                self.fail(f"{key} nests arrays more than {MAX_NESTING} deep")
            return self.read_array(key, depth)
        layout = SCALARS.get(type_id)
        if layout is None:
            self.fail(f"{key} has the unknown value type {type_id}")
        assert layout is not None
        return self.read_number(layout, key)

    def read_array(self, key: str, depth: int) -> list[object]:
        item_type = self.read_integer(U32, f"the item type of {key}")
        length = self.read_integer(U64, f"the length of {key}")
        layout = SCALARS.get(item_type)
        if layout is not None:
            self.file.require(self.position, length * layout.size, f"{key} ({length:,} items)")
            many = struct.Struct(f"<{length}{layout.format[1:]}")
            values = many.unpack_from(self.file.data, self.position)
            self.position += many.size
            return list(values)
        # Every string or array takes at least 8 bytes: a length that cannot fit is refused before the loop.
        self.file.require(self.position, length * U64.size, f"{key} ({length:,} items)")
        if item_type == STRING:
            return self.read_strings(length, key)
        return [self.read_value(item_type, key, depth + 1) for _ in range(length)]

    def read_strings(self, length: int, key: str) -> list[object]:
        """The hot path: a vocabulary has up to some hundred thousand strings."""
        data, size, position = self.file.data, self.file.size, self.position
        unpack = U64.unpack_from
        strings: list[object] = []
        try:
            for _ in range(length):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > size:
                    self.file.require(start, position - start, f"an item of {key}")
                strings.append(data[start:position].decode())
        except struct.error:
            self.file.require(position, 8, f"an item of {key}")
            raise
        except UnicodeDecodeError:
            self.fail(f"item {len(strings)} of {key} is not UTF-8")
        self.position = position
        return strings

    def read_string(self, what: str, limit: int) -> str:
        length = self.read_count(U64, limit, f"bytes of {what}")
        raw = self.file.read(self.position, length, what)
        self.position += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")
            raise

    def read_count(self, layout: struct.Struct, limit: int, what: str) -> int:
        count = self.read_integer(layout, f"the number of {what}")
        if count > limit:
            self.fail(f"{count:,} {what}; at most {limit:,} are possible")
        return count

    def read_integer(self, layout: struct.Struct, what: str) -> int:
        value = self.read_number(layout, what)
        assert isinstance(value, int)
        return value

    def read_number(self, layout: struct.Struct, what: str) -> int | float | bool:
        (value,) = self.file.unpack(layout, self.position, what)
        self.position += layout.size
        return value

    def fail(self, what: str) -> None:
        raise CheckpointError(
            f"{self.file.path} is damaged (near byte {self.position:,} of {self.file.size:,}): {what}",
            remedy="copy or download the file again",
        )
