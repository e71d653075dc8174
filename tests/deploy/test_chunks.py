from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeawq.deploy import chunks
from edgeawq.deploy.cache import cache_folder
from edgeawq.deploy.chunks import CHUNK_BYTES, cut_at_tensors, cut_evenly, hash_chunks, hash_known_file
from edgeawq.deploy.receiver.limits import MAX_CHUNK_BYTES
from edgeawq.errors import BundleError
from packager.manifest import TensorEntry


def make_tensors(sizes: list[tuple[str, int]]) -> tuple[list[TensorEntry], int]:
    """Tensors one after the other, at multiples of 64 bytes, and the size of their file."""
    tensors, offset = [], 0
    for name, size in sizes:
        tensors.append(TensorEntry(name, "f32", 32, 0, size // 4, 1, "", offset, size))
        offset += -(-size // 64) * 64
    return tensors, offset


SIZES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(4, 3 * CHUNK_BYTES)), min_size=1, max_size=12)


@given(SIZES, st.integers(0, 100))
def test_every_byte_is_in_one_chunk_of_a_size_that_may_be(sizes: list[tuple[str, int]], tail: int) -> None:
    named = [(f"layers.{number // 3}.{name}.weight", size) for number, (name, size) in enumerate(sizes)]
    tensors, size = make_tensors(named)
    lengths = cut_at_tensors(size + tail, random.sample(tensors, len(tensors)))
    assert sum(lengths) == size + tail and all(0 < length <= CHUNK_BYTES <= MAX_CHUNK_BYTES for length in lengths)


@given(st.integers(0, 10 * CHUNK_BYTES))
def test_cuts_evenly(size: int) -> None:
    lengths = cut_evenly(size)
    assert sum(lengths) == size and lengths[:-1] == [CHUNK_BYTES] * (len(lengths) - 1) and lengths[-1] <= CHUNK_BYTES


def test_a_layer_and_a_large_tensor_share_no_chunk_with_others() -> None:
    sizes = [("embedding", CHUNK_BYTES + 70)]
    for layer in range(4):
        sizes += [(f"layers.{layer}.norm.weight", 2304), (f"layers.{layer}.mlp.up.qweight", 5_000_000)]
        sizes += [(f"layers.{layer}.q.qweight", 900_001 - 1), (f"layers.{layer}.k.qweight", 300_000)]
    sizes += [("norm.weight", 2304), ("lm_head", 9_000_004)]
    tensors, size = make_tensors(sizes)
    starts, at = set(), 0
    for length in cut_at_tensors(size, tensors):
        starts.add(at)
        at += length
    firsts = [tensor.offset for tensor in tensors if tensor.name.endswith(("norm.weight", "lm_head", "embedding"))]
    large = [tensor.offset for tensor in tensors if tensor.nbytes >= CHUNK_BYTES]
    assert starts >= {*firsts, *large}
    assert not starts & {tensor.offset for tensor in tensors if tensor.name.endswith("k.qweight")}, "small ones share"


def test_a_tensor_beyond_the_file_is_no_obstacle() -> None:
    tensors, size = make_tensors([("a", 6_000_000), ("b", 6_000_000)])
    assert sum(cut_at_tensors(size - 7_000_000, tensors)) == size - 7_000_000


def test_hashes_chunk_by_chunk(tmp_path: Path) -> None:
    data = os.urandom(1000)
    (tmp_path / "file").write_bytes(data)
    expected = ((600, hashlib.sha256(data[:600]).hexdigest()), (400, hashlib.sha256(data[600:]).hexdigest()))
    assert hash_chunks(tmp_path / "file", [600, 400]) == expected
    with pytest.raises(BundleError, match="shorter"):
        hash_chunks(tmp_path / "file", [600, 401])


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, bytes, str]:
    data = os.urandom(9_000_000)
    (tmp_path / "weights").write_bytes(data)
    return tmp_path / "weights", data, hashlib.sha256(data).hexdigest()


def test_a_known_file_is_hashed_once(large: tuple[Path, bytes, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, data, digest = large
    lengths = cut_evenly(len(data))
    first = hash_known_file(path, digest, lengths)
    assert first == hash_chunks(path, lengths)
    monkeypatch.setattr(chunks, "hash_chunks", lambda *arguments: 1 // 0)
    assert hash_known_file(path, digest, lengths) == first
    assert hash_known_file(path, digest, [len(data)]) == ((len(data), digest),)
    with pytest.raises(ZeroDivisionError):
        hash_known_file(path, digest, [5_000_000, 4_000_000])


@pytest.mark.parametrize("text", ["", "x\n" * 3, "0" * 64 + "\n", "\xff"])
def test_a_damaged_record_is_made_anew(text: str, large: tuple[Path, bytes, str]) -> None:
    path, data, digest = large
    first = hash_known_file(path, digest, cut_evenly(len(data)))
    (record,) = cache_folder("chunks").iterdir()
    record.write_text(text, encoding="latin-1")
    assert hash_known_file(path, digest, cut_evenly(len(data))) == first and record.read_text() != text


def test_a_file_that_is_not_what_the_manifest_says_is_refused_and_not_recorded(large: tuple[Path, bytes, str]) -> None:
    path, data, digest = large
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match="damaged"):
        hash_known_file(path, digest, cut_evenly(len(data)))
    assert list(cache_folder("chunks").iterdir()) == []


def test_only_so_many_records_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "KEPT_LISTS", 3)
    for number in range(6):
        data = bytes([number]) * 100
        (tmp_path / "file").write_bytes(data)
        hash_known_file(tmp_path / "file", hashlib.sha256(data).hexdigest(), [60, 40])
        for record in cache_folder("chunks").iterdir():
            os.utime(record, ns=(0, record.stat().st_mtime_ns - 10**9))
    assert len(list(cache_folder("chunks").iterdir())) == 3
