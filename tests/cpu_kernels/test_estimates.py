"""The kernels' estimates against counting one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cpu_kernels.abi import QUERY_BLOCK
from cpu_kernels.estimates import Estimates, estimate_attention, estimate_linear, estimate_merge, weight_bytes


@given(
    st.integers(1, 500),
    st.integers(1, 40),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([2, 3, 4, 8]),
    st.integers(1, 64),
)
def test_a_linear_layer_costs_two_operations_a_weight_and_at_least_its_weights(
    out_features: int, groups: int, group_size: int, bits: int, tokens: int
) -> None:
    here = estimate_linear(out_features, groups * group_size, bits, group_size, tokens)
    assert here.operations == 2 * tokens * out_features * groups * group_size
    assert here.bytes >= weight_bytes(out_features, groups * group_size, bits, group_size)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([32, 64]), st.integers(0, 300), st.integers(1, 64))
def test_attention_is_counted_token_by_token(
    group: int, kv_heads: int, head_dim: int, position: int, tokens: int
) -> None:
    heads = group * kv_heads
    cost = estimate_attention(heads, kv_heads, head_dim, position, tokens)
    operations, rows = 0, 0
    for token in range(tokens):
        seen = position + token + 1
        operations += 2 * (2 * heads * head_dim) * seen  # scores, then values; a multiply and an add each
        if token % QUERY_BLOCK == QUERY_BLOCK - 1 or token == tokens - 1:
            rows += seen  # a pass of one block of queries over the cache
    assert cost.operations == operations
    assert cost.bytes >= 2 * rows * kv_heads * head_dim * 2
    assert cost.bytes - 2 * rows * kv_heads * head_dim * 2 <= tokens * 16 * (heads + kv_heads) * head_dim


def test_a_smaller_cache_costs_half_the_bytes() -> None:
    wide, narrow = (estimate_attention(9, 3, 64, 4000, 1, bits).bytes for bits in (16, 8))
    assert 0.5 < narrow / wide < 0.54  # scales and the token's own rows


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 100))
def test_costs_add_up(operations: int, size: int, count: int) -> None:
    total = Estimates(0, 0)
    for _ in range(count):
        total = total + Estimates(operations, size)
    assert total == Estimates(operations, size).times(count)


def test_more_chunks_cost_more_to_merge() -> None:
    assert estimate_merge(576, 64, 5).operations > estimate_merge(576, 64, 4).operations
