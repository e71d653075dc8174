from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgeawq.checkpoints.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from edgeawq.errors import CheckpointError, EdgeawqError, UnsupportedModelError


def write_raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_the_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(7,)).astype(np.float16),
        "c": rng.integers(-9, 9, (2, 3, 4)).astype(np.int32),
        "d": rng.integers(0, 255, (5,)).astype(np.uint8),
        "e": rng.normal(size=(2, 2)),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt", "k": "v"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt", "k": "v"}
    assert set(file.tensors) == set(tensors)
    for name, values in tensors.items():
        stored = file.read_stored(name)
        assert np.array_equal(stored, values)
        assert stored.dtype == values.dtype
        assert not stored.flags.writeable
    assert np.array_equal(file.read_float("b"), tensors["b"].astype(np.float32))
    assert file.read_float("a").dtype == np.float32
    with pytest.raises(UnsupportedModelError, match="I32"):
        file.read_float("c")


def test_bfloat16_becomes_exactly_the_same_float32(tmp_path):
    bits = np.random.default_rng(5).integers(0, 0x7F80, 999).astype(np.uint16)  # finite, positive
    bits[::3] |= 0x8000
    bits[:3] = 0x3F80, 0xC000, 0x0001
    write_raw(tmp_path / "x", {"a": entry([999], 0, 1998, "BF16")}, bits.tobytes())
    values = SafetensorsFile(tmp_path / "x").read_float("a")
    expected = [struct.unpack("<f", struct.pack("<HH", 0, int(word)))[0] for word in bits]
    assert values.tolist() == expected
    assert values[:2].tolist() == [1.0, -2.0]


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    data = b"\x07" + np.arange(4, dtype=np.float32).tobytes()
    write_raw(tmp_path / "x", {"a": entry([1], 0, 1, "U8"), "b": entry([4], 1, 17)}, data)
    assert SafetensorsFile(tmp_path / "x").read_float("b").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8), "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20), "gap"),
        ({"a": entry([2], 0, 8)}, bytes(7), "truncated"),
        ({"a": entry([2], 0, 8)}, bytes(9), "end at byte"),
        ({"a": entry([3], 0, 8)}, bytes(8), "say otherwise"),
        ({"a": entry([-1], 0, 8)}, bytes(8), "shape"),
        ({"a": entry([2], 8, 0)}, bytes(8), "say otherwise"),
        ({"a": entry([2**40, 2**40], 0, 8)}, bytes(8), "say otherwise"),
        ({"a": entry([1] * 9, 0, 4)}, bytes(4), "shape"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "offsets"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4), "shape"),
        ({"a": 3}, b"", "entry of a"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ([1, 2], b"", "not a JSON object"),
        (b"{nonsense", b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":3}', bytes(1), "twice"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, data, words):
    write_raw(tmp_path / "x", header, data)
    with pytest.raises(CheckpointError, match=words) as caught:
        SafetensorsFile(tmp_path / "x")
    assert str(tmp_path / "x") in caught.value.what


def test_a_header_larger_than_the_file_names_both_sizes(tmp_path):
    write_raw(tmp_path / "x", {}, length=1_000_000)
    with pytest.raises(CheckpointError, match=r"1,000,008.*has 10 bytes"):
        SafetensorsFile(tmp_path / "x")


def test_a_header_beyond_the_format_is_refused_before_it_is_read(tmp_path):
    write_raw(tmp_path / "x", {}, length=MAX_HEADER_BYTES + 1)
    with pytest.raises(CheckpointError, match="100,000,000"):
        SafetensorsFile(tmp_path / "x")


def test_an_unknown_type_is_named(tmp_path):
    write_raw(tmp_path / "x", {"a": entry([8], 0, 8, "F8_E4M3")}, bytes(8))
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        SafetensorsFile(tmp_path / "x")


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_its_first_number(tmp_path, size):
    (tmp_path / "x").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"has {size} bytes"):
        SafetensorsFile(tmp_path / "x")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path / "x")


@settings(deadline=None, max_examples=150)
@given(cut=st.integers(0, 20), position=st.integers(0, 400), value=st.integers(0, 255))
def test_any_damage_ends_in_a_clear_error_or_in_the_right_shapes(tmp_path_factory, cut, position, value):
    folder = tmp_path_factory.mktemp("damage")
    save_file({"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float16)}, folder / "x")
    raw = bytearray((folder / "x").read_bytes())
    raw[position % len(raw)] = value
    (folder / "x").write_bytes(bytes(raw[: len(raw) - cut]))
    try:
        file = SafetensorsFile(folder / "x")
    except EdgeawqError:
        return
    for name, stored in file.tensors.items():
        assert file.read_stored(name).shape == stored.shape
