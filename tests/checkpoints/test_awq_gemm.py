from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.checkpoints.awq_gemm import pack_gemm, pack_linear_gemm, unpack_gemm, unpack_linear_gemm
from edgeawq.checkpoints.grid import quantize_rtn
from edgeawq.errors import CheckpointError


def pack_one_word(values: list[int]) -> int:
    """Eight values as AutoAWQ puts them into a signed 32-bit word, from the format's description."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    word = sum(values[order[nibble]] * 16**nibble for nibble in range(8))
    return word - 2**32 if word >= 2**31 else word


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 9), words=st.integers(0, 5), seed=st.integers(0, 2**32 - 1), transposed=st.booleans())
def test_pack_matches_a_word_by_word_reference_and_unpack_undoes_it(rows, words, seed, transposed):
    values = np.random.default_rng(seed).integers(0, 16, (rows, words * 8), dtype=np.uint8)
    given_values = np.ascontiguousarray(values.T).T if transposed else values
    packed = pack_gemm(given_values)
    assert packed.dtype == np.int32
    assert packed.flags.c_contiguous
    expected = [[pack_one_word(values[row, 8 * w : 8 * w + 8].tolist()) for w in range(words)] for row in range(rows)]
    assert packed.tolist() == expected
    assert np.array_equal(unpack_gemm(packed), values)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 6), n_words=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_unpack_of_any_words_packs_to_the_same_words(rows, n_words, seed):
    words = np.random.default_rng(seed).integers(-(2**31), 2**31, (rows, n_words)).astype(np.int32)
    assert np.array_equal(pack_gemm(unpack_gemm(words)), words)


def test_a_known_word():
    assert pack_gemm(np.arange(8, dtype=np.uint8)[None]).view(np.uint32)[0, 0] == 0x75316420


@pytest.mark.parametrize(("out_features", "in_features", "group_size"), [(8, 32, 32), (24, 96, 32), (192, 576, 64)])
def test_a_layer_survives_the_format(out_features, in_features, group_size):
    weight = np.random.default_rng(3).normal(size=(out_features, in_features)).astype(np.float32)
    linear = quantize_rtn(weight, 4, group_size)
    stored = pack_linear_gemm(linear)
    groups = in_features // group_size
    assert {name: (values.shape, values.dtype.name) for name, values in stored.items()} == {
        "qweight": ((in_features, out_features // 8), "int32"),
        "qzeros": ((groups, out_features // 8), "int32"),
        "scales": ((groups, out_features), "float16"),
    }
    restored = unpack_linear_gemm(stored["qweight"], stored["qzeros"], stored["scales"], group_size)
    for part in ("q", "scales", "zeros"):
        assert np.array_equal(getattr(restored, part), getattr(linear, part))
        assert getattr(restored, part).flags.c_contiguous
    assert (restored.bits, restored.group_size) == (4, group_size)


def test_what_does_not_fit_the_format_is_refused():
    with pytest.raises(CheckpointError, match="12 outputs"):
        pack_gemm(np.zeros((2, 12), np.uint8))
    with pytest.raises(CheckpointError, match="found 16"):
        pack_gemm(np.full((2, 8), 16, np.uint8))
    with pytest.raises(CheckpointError, match="3-bit"):
        pack_linear_gemm(quantize_rtn(np.ones((8, 8), np.float32), 3, 8))
