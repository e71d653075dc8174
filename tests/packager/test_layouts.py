from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.errors import BundleError
from packager.layouts import (
    LAYOUTS,
    field_order,
    pack_gate_up,
    pack_linear,
    pack_records,
    record_shape,
    unpack_linear,
)


def make_linear(seed: int, out_features: int, groups: int, group_size: int, bits: int) -> QuantizedLinear:
    rng = np.random.default_rng(seed)
    top = 1 << bits
    return QuantizedLinear(
        q=rng.integers(0, top, (out_features, groups * group_size), dtype=np.uint8),
        scales=rng.normal(size=(out_features, groups)).astype(np.float16),
        zeros=rng.integers(0, top, (out_features, groups), dtype=np.uint8),
        bits=bits,
        group_size=group_size,
    )


linears = st.builds(
    make_linear,
    seed=st.integers(0, 2**32),
    out_features=st.integers(1, 70),
    groups=st.integers(1, 12),
    group_size=st.sampled_from([32, 64, 96, 128, 576]),
    bits=st.sampled_from([2, 3, 4, 8]),
)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@given(linear=linears)
@settings(max_examples=60, deadline=None)
def test_unpacking_gives_back_every_bit(layout, linear):
    again = unpack_linear(pack_linear(linear, layout), layout, *linear.shape, linear.bits, linear.group_size)
    np.testing.assert_array_equal(again.q, linear.q)
    np.testing.assert_array_equal(again.zeros, linear.zeros)
    assert again.scales.tobytes() == linear.scales.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_orders_are_permutations(layout):
    for bits in (1, 2, 4, 8):
        assert sorted(field_order(layout, bits)) == list(range(layout.register_bytes * 8 // bits))


@pytest.mark.parametrize(("name", "partner"), [("neon", 16), ("avx2", 32), ("avx512", 64)])
def test_a_byte_holds_a_value_and_its_partner_one_register_later(name, partner):
    layout = LAYOUTS[name]
    rows = layout.record_rows
    linear = make_linear(7, rows, 1, 32, 4)
    shape = record_shape(layout, rows, 32, 4, 32)
    packed = pack_linear(linear, layout)[shape.weights_offset :][: layout.register_bytes]
    # the first tile: rows × 8 columns, in the order in which the unpacked registers hold them
    values = linear.q[: layout.tile_rows, :8].reshape(-1)[field_order(layout, 4)]
    for e in range(partner):
        assert packed[e] == values[e] | values[e + partner] << 4


def test_constants_lie_in_front_of_their_weights():
    layout = LAYOUTS["avx2"]
    linear = make_linear(1, 8, 9, 64, 4)
    shape = record_shape(layout, 8, 576, 4, 64)
    record = pack_records(linear, layout)[0]
    assert record.size == shape.record_bytes == 192 + 576 * 4
    scales = record[: shape.zeros_offset].view(np.float16).reshape(9, 8)
    assert scales.tobytes() == np.ascontiguousarray(linear.scales.T).tobytes()
    zeros = record[shape.zeros_offset : shape.zeros_offset + 36].reshape(9, 4)
    np.testing.assert_array_equal(zeros & 15, linear.zeros.T[:, 0::2])
    np.testing.assert_array_equal(zeros >> 4, linear.zeros.T[:, 1::2])


def test_rows_that_fill_up_a_record_weigh_nothing():
    layout = LAYOUTS["avx512"]
    padded = unpack_linear(pack_linear(make_linear(3, 17, 2, 32, 4), layout), layout, 32, 64, 4, 32)
    assert not padded.scales[17:].any()


def test_gate_and_up_alternate():
    layout = LAYOUTS["neon"]
    gate, up = make_linear(1, 24, 2, 32, 4), make_linear(2, 24, 2, 32, 4)
    records = pack_gate_up(gate, up, layout).reshape(6, -1)
    np.testing.assert_array_equal(records[0::2], pack_records(gate, layout))
    np.testing.assert_array_equal(records[1::2], pack_records(up, layout))
    with pytest.raises(BundleError, match="differ in shape"):
        pack_gate_up(gate, make_linear(2, 16, 2, 32, 4), layout)


@pytest.mark.parametrize(
    ("out_features", "in_features", "bits", "group_size"),
    [(8, 64, 5, 32), (8, 64, 4, 16), (8, 96, 4, 64), (0, 64, 4, 32), (8, 64, 4, 0), (8, 64, 4, -32)],
)
def test_what_no_kernel_takes_is_refused(out_features, in_features, bits, group_size):
    with pytest.raises(BundleError):
        record_shape(LAYOUTS["avx2"], out_features, in_features, bits, group_size)


def test_a_wrong_number_of_bytes_is_refused():
    layout = LAYOUTS["avx2"]
    data = pack_linear(make_linear(1, 8, 2, 32, 4), layout)
    with pytest.raises(BundleError, match="takes"):
        unpack_linear(data[:-1], layout, 8, 64, 4, 32)
