from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.checkpoints.gguf_header import MAGIC, read_header
from edgeawq.checkpoints.mapped_file import MappedFile
from edgeawq.errors import CheckpointError, EdgeawqError
from tests.checkpoints.gguf_files import make_gguf


def pack_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def write_header(
    path: Path, *, version: int = 3, tensors: bytes = b"", n_tensors: int = 0, entries: bytes = b"", n: int = 0
):
    path.write_bytes(MAGIC + struct.pack("<IQQ", version, n_tensors, n) + entries + tensors)
    return path


def read(path: Path):
    return read_header(MappedFile(path))


def test_agrees_with_the_gguf_librarys_reader(tmp_path):
    metadata = {
        "a.float": 0.25,
        "a.bool": True,
        "a.text": "naïve 🙂",
        "a.ints": [3, 1, 2],
        "a.floats": [0.5, -1.5],
        "a.bools": [True, False],
        "a.texts": ["x", "", "日本"],
    }
    make_gguf(tmp_path / "m.gguf", 3, write={"metadata": metadata})
    header = read(tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == theirs
    assert header.metadata["a.texts"] == ["x", "", "日本"]
    assert set(header.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        own = header.tensors[tensor.name]
        assert own.shape == tuple(reversed(tensor.shape.tolist()))
        assert (own.offset, own.type_id) == (tensor.data_offset, int(tensor.tensor_type))


def test_nested_arrays_and_alignment(tmp_path):
    inner = struct.pack("<IQ", 4, 2) + struct.pack("<II", 7, 8)
    nested = pack_string(b"n") + struct.pack("<IIQ", 9, 9, 2) + inner + inner
    alignment = pack_string(b"general.alignment") + struct.pack("<II", 4, 128)
    tensor = pack_string(b"t") + struct.pack("<IQQIQ", 2, 3, 5, 0, 64)
    header = read(write_header(tmp_path / "x", entries=nested + alignment, n=2, tensors=tensor, n_tensors=1))
    assert header.metadata["n"] == [[7, 8], [7, 8]]
    assert header.tensors["t"].shape == (5, 3)
    assert header.tensors["t"].offset % 64 == 0
    assert header.tensors["t"].offset == -(-(tmp_path / "x").stat().st_size // 128) * 128 + 64


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"version https://git-lfs", "not a GGUF file"),
        (MAGIC + b"\x03", "truncated"),
        (MAGIC + struct.pack("<IQQ", 1, 0, 0), "version 0x1"),
        (MAGIC + struct.pack("<IQQ", 4, 0, 0), "version 0x4"),
        (MAGIC + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (MAGIC + struct.pack("<IQQ", 3, 2**60, 0), "tensors"),
        (MAGIC + struct.pack("<IQQ", 3, 0, 2**60), "metadata entries"),
    ],
)
def test_what_is_no_gguf_file(tmp_path, raw, words):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path / "x")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (pack_string(b"k") + struct.pack("<I", 99), "value type 99"),
        (pack_string(b"\xff") + struct.pack("<I", 0), "UTF-8"),
        (struct.pack("<Q", 2**62) + b"k", "bytes of a metadata key"),
        (pack_string(b"k") + struct.pack("<IQ", 8, 2**40), "bytes of k"),
        (pack_string(b"k") + struct.pack("<IIQ", 9, 8, 2**61), "truncated"),
        (pack_string(b"k") + struct.pack("<IIQ", 9, 6, 2**61), "truncated"),
        (pack_string(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**61), "truncated"),
        (pack_string(b"k") + struct.pack("<IIQ", 9, 8, 1) + pack_string(b"\xc3"), "not UTF-8"),
        (pack_string(b"k") + b"".join(struct.pack("<IQ", 9, 1) for _ in range(9)), "truncated|nests"),
        (pack_string(b"general.alignment") + struct.pack("<II", 4, 3), "power of two"),
        (pack_string(b"general.alignment") + struct.pack("<II", 4, 0), "power of two"),
        (pack_string(b"general.alignment") + struct.pack("<I", 8) + pack_string(b"no"), "power of two"),
    ],
)
def test_damaged_metadata(tmp_path, entry, words):
    write_header(tmp_path / "x", entries=entry, n=1)
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path / "x")


def test_arrays_nested_without_end_are_refused(tmp_path):
    levels = b"".join(struct.pack("<IQ", 9, 1) for _ in range(50))
    write_header(tmp_path / "x", entries=pack_string(b"k") + struct.pack("<I", 9) + levels, n=1)
    with pytest.raises(CheckpointError, match="nests"):
        read(tmp_path / "x")


def test_names_given_twice(tmp_path):
    entry = pack_string(b"k") + struct.pack("<IB", 0, 1)
    write_header(tmp_path / "x", entries=entry * 2, n=2)
    with pytest.raises(CheckpointError, match="'k' is there twice"):
        read(tmp_path / "x")
    tensor = pack_string(b"t") + struct.pack("<IQIQ", 1, 3, 0, 0)
    write_header(tmp_path / "x", tensors=tensor * 2, n_tensors=2)
    with pytest.raises(CheckpointError, match="'t' is there twice"):
        read(tmp_path / "x")
    write_header(tmp_path / "x", tensors=pack_string(b"t") + struct.pack("<I", 5), n_tensors=1)
    with pytest.raises(CheckpointError, match="5 dimensions"):
        read(tmp_path / "x")


@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 0.9, 0.9999])
def test_a_truncated_file_names_byte_counts(tmp_path, part):
    make_gguf(tmp_path / "m.gguf", 1)
    raw = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(raw[: int(len(raw) * part)])
    with pytest.raises(CheckpointError, match=f"truncated.* the file has {int(len(raw) * part):,} bytes"):
        GgufCheckpoint(tmp_path / "m.gguf")


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_damage_to_the_header_ends_in_a_clear_error_or_is_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    make_gguf(folder / "m.gguf", 2, n_layers=1, hidden=32, intermediate=32, n_heads=1, n_kv_heads=1)
    raw = bytearray((folder / "m.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(4, 12_000)) % len(raw)] = data.draw(st.integers(0, 255))
    (folder / "m.gguf").write_bytes(bytes(raw))
    try:
        model = GgufCheckpoint(folder / "m.gguf")
        model.tokenizer  # noqa: B018
        for name in model.tensor_names():
            model.tensor(name)
    except EdgeawqError as error:
        assert error.what
