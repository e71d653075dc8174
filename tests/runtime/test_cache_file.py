"""A saved KV cache comes back bit for bit, or not at all."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeawq.errors import ContextFullError, UsageError
from edgeawq.runtime.cache_file import CacheLayout, find_mismatch, is_cache_file, load_cache, read_header, write_cache
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.engine import hash_bundle
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model

BUNDLE = "cd" * 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_tiny_model(5, n_heads=6, n_kv_heads=2, head_dim=32)
    return pack_for_host(model, tmp_path_factory.mktemp("bundle") / "tiny.edgeawq")


def save_fake(path: Path, n_tokens: int = 20, **extra: Any) -> FakeDecoder:
    decoder = FakeDecoder(100)
    decoder.forward(np.random.default_rng().integers(0, 100, n_tokens).tolist())
    write_cache(path, decoder, bundle=BUNDLE, tokens=decoder.context, extra=extra)
    return decoder


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 90])
def test_a_restored_decoder_goes_on_with_the_same_bits(
    bundle: Path, tmp_path: Path, activations: Any, count: int
) -> None:
    path = tmp_path / "cache"
    with Decoder.open(bundle, n_threads=1, activations=activations) as decoder:
        tokens = np.random.default_rng().integers(0, decoder.config.vocab_size, count + 5).tolist()
        decoder.forward(tokens[:count])
        write_cache(path, decoder, bundle=hash_bundle(bundle), tokens=tokens[:count], extra={"x": "ü"})
        expected = [decoder.forward([token]).copy() for token in tokens[count:]]
    # another number of threads and another context length
    with Decoder.open(bundle, n_threads=2, context_length=128, activations=activations) as decoder:
        decoder.forward([1, 2, 3])
        header = read_header(path)
        assert header.tokens == tuple(tokens[:count]) and header.extra == {"x": "ü"}
        assert not find_mismatch(header, decoder, bundle=hash_bundle(bundle), vocab_size=decoder.config.vocab_size)
        load_cache(path, header, decoder)
        assert decoder.position == count
        for layer in range(decoder.config.n_layers):
            assert decoder.export_layer(layer, count).any()
    with Decoder.open(bundle, n_threads=1, activations=activations) as decoder:
        load_cache(path, header, decoder)
        for token, logits in zip(tokens[count:], expected, strict=True):
            assert np.array_equal(decoder.forward([token]), logits)


def test_only_its_owner_can_read_it_and_nothing_else_is_left(tmp_path: Path) -> None:
    save_fake(tmp_path / "cache")
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert is_cache_file(tmp_path / "cache") and not is_cache_file(tmp_path / "absent")


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save_fake(path)
    data = path.read_bytes()
    rng = np.random.default_rng()
    for index in [*range(16), *rng.integers(16, len(data), 60).tolist(), len(data) - 1]:
        broken = bytearray(data)
        broken[index] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(UsageError):
            read_header(path)
    for length in [0, 7, 15, 16, 40, len(data) - 33, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(UsageError):
            read_header(path)
    path.write_bytes(data + b"x")
    with pytest.raises(UsageError, match="bytes, its header says"):
        read_header(path)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": [1.5]},
        {"tokens": [-1]},
        {"tokens": [True]},
        {"tokens": 5},
        {"bundle": 3},
        {"extra": []},
        {"layout": {}},
        {"layout": None},
        {"layout": {"element": "f64", "n_layers": 1, "n_kv_heads": 1, "head_dim": 1}},
        {"layout": {"element": ["f16"], "n_layers": 1, "n_kv_heads": 1, "head_dim": 1}},
        {"layout": {"element": "f32", "n_layers": 0, "n_kv_heads": 1, "head_dim": 1}},
        {"layout": {"element": "f32", "n_layers": 1 << 40, "n_kv_heads": 1, "head_dim": 1}},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    save_fake(path, 3)
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    header = json.dumps({**json.loads(data[16 : 16 + length]), **change}).encode()
    path.write_bytes(data[:12] + len(header).to_bytes(4, "little") + header + data[16 + length :])
    with pytest.raises(UsageError) as caught:
        read_header(path)
    assert str(path) in caught.value.what and caught.value.remedy


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save_fake(path)
    data = bytearray(path.read_bytes())
    data[12:16] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="header of 4294967295 bytes"):
        read_header(path)


def test_why_a_cache_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    decoder = save_fake(path, 20)
    header = read_header(path)

    def find(header: Any = header, bundle: str = BUNDLE, vocab_size: int = 100, length: int = 512) -> str:
        return find_mismatch(header, FakeDecoder(100, context_length=length), bundle=bundle, vocab_size=vocab_size)

    assert find() == ""
    assert "another bundle" in find(bundle="ef" * 32)
    assert "f16 elements" in find(header=replace(header, layout=CacheLayout("f16", 1, 1, 1)))
    assert "20 tokens, the context has room for 19" in find(length=19)
    assert "does not know" in find(vocab_size=max(decoder.context))
    with pytest.raises(UsageError, match="no file"):
        read_header(tmp_path / "absent")


def test_a_cache_that_fails_on_the_way_is_empty(bundle: Path) -> None:
    def broken() -> Iterator[Any]:
        yield whole
        raise UsageError("gone")

    with Decoder.open(bundle, n_threads=1, context_length=32) as decoder:
        decoder.forward([1, 2, 3, 4])
        whole = decoder.export_layer(0, 4)
        with pytest.raises(UsageError, match="gone"):
            decoder.import_layers(4, broken())
        assert decoder.position == 0
        decoder.forward([1, 2, 3])
        with pytest.raises(ContextFullError, match="33 tokens"):
            decoder.import_layers(33, iter(()))
        assert decoder.position == 3
