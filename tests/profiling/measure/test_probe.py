"""The probe object on this machine: it does what it says, with any number of threads."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest

from cpu_kernels.build import build_probe
from cpu_kernels.probe import words
from edgeawq.errors import KernelError
from edgeawq.profiling.measure.bandwidth import Arena, measure_point, touch_all
from edgeawq.profiling.measure.compute import measure_barrier, measure_clock, measure_compute
from edgeawq.profiling.measure.probe import Probe
from edgeawq.profiling.measure.storage import cached_share, drop_cached, measure_mapped, measure_storage, measure_zeroed
from edgeawq.profiling.schema import CacheFacts, ComputePoint, Unavailable
from edgeawq.runtime.native import NativeObject, load_object
from tests.cpu_kernels.native_kernels import host_target


@functools.cache
def load_probe() -> NativeObject:
    target = host_target()
    return load_object(build_probe(target, target.isa))


@pytest.fixture(params=[1, 2, 3])
def probe(request: pytest.FixtureRequest):
    with Probe(load_probe(), request.param) as running:
        yield running


def aligned(count: int) -> np.ndarray:
    memory = np.zeros(count + 16, np.int32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + count]


SHARE = 4 * words.BLOCK  # bytes of a thread


def test_read_sums_every_byte_of_every_thread_s_part(probe: Probe) -> None:
    rng = np.random.default_rng()
    data = aligned(probe.n_threads * SHARE // 4)
    data[:] = rng.integers(-(2**31), 2**31, data.size)
    run = probe.run(words.READ, a=data.ctypes.data, size=SHARE, stride=SHARE, repeats=3)
    assert run.work == 3 * SHARE * probe.n_threads
    for thread, check in enumerate(probe.checks()):
        part = data[thread * SHARE // 4 : (thread + 1) * SHARE // 4]
        assert check == (3 * part.astype(np.int64)).sum().astype(np.int32)


def test_copy_and_triad_and_fill(probe: Probe) -> None:
    rng = np.random.default_rng()
    count = probe.n_threads * SHARE // 4
    a, b, c = aligned(count), aligned(count + 16), aligned(count)
    a[:] = rng.integers(-(2**31), 2**31, count)
    run = probe.run(words.COPY, a=a.ctypes.data, b=b.ctypes.data, size=SHARE, stride=SHARE)
    assert run.work == 2 * SHARE * probe.n_threads
    np.testing.assert_array_equal(b[:count], a)
    assert not b[count:].any()
    x, y, z = a.view(np.float32), b[:count].view(np.float32), c.view(np.float32)
    y[:], z[:] = rng.normal(size=count), rng.normal(size=count)
    run = probe.run(words.TRIAD, a=x.ctypes.data, b=y.ctypes.data, c=z.ctypes.data, size=SHARE, stride=SHARE)
    assert run.work == 3 * SHARE * probe.n_threads
    np.testing.assert_allclose(x, y + 3 * z, rtol=1e-6, atol=1e-6)
    probe.run(words.FILL, a=x.ctypes.data, size=SHARE, stride=SHARE)
    assert (x == 1).all()


def test_touches_take_one_word_of_each_page(probe: Probe) -> None:
    data = aligned(4 * 1024)
    data[::1024] = [1, 2, 3, 4]
    probe.run(words.TOUCH_READ, a=data.ctypes.data, size=data.nbytes, stride=4096)
    assert probe.checks() == [10] * probe.n_threads
    probe.run(words.TOUCH_WRITE, a=data.ctypes.data, size=data.nbytes, stride=4096)
    assert data.sum() == 4 and (data[::1024] == 1).all()


def test_int8_loops_multiply_what_the_table_holds(probe: Probe) -> None:
    """All weights and activations are one: the sum of all lanes is the number of multiply-adds."""
    size = (words.WEIGHT_REGISTERS + 4) * 64
    table = np.ones(size * probe.n_threads + 64, np.uint8)
    for operation, bias in ((words.INT8_NIBBLES, 0), (words.INT8_BYTES, None)):
        run = probe.run(operation, a=table.ctypes.data, stride=size, repeats=5)
        products = run.work // (2 * probe.n_threads)
        # an 8-bit weight may be taken as w - 128
        expected = {products} if bias is not None else {products, products * (1 - 128)}
        assert set(probe.checks()) <= expected


def test_work_is_proportional_to_the_rounds(probe: Probe) -> None:
    table = np.zeros(4096 * probe.n_threads, np.uint8)
    for operation in (words.FP32, words.INT8_NIBBLES, words.INT8_BYTES, words.CHAIN, words.BARRIER):
        one = probe.run(operation, a=table.ctypes.data, b=3, stride=2048, repeats=1).work
        assert one > 0
        assert probe.run(operation, a=table.ctypes.data, b=3, stride=2048, repeats=7).work == 7 * one


def test_the_chain_is_the_arithmetic_it_says() -> None:
    with Probe(load_probe(), 1) as probe:
        a, b, value = 0x5DEECE66D, 0x2545F4914F6CDD1D, 1
        probe.run(words.CHAIN, a=a, b=b, repeats=3)
        for _ in range(3 * words.CHAIN_CYCLES // 2):
            value = ((value + a) & (2**64 - 1)) ^ b
        assert probe.checks()[0] & (2**64 - 1) == value


def test_an_operation_that_the_object_lacks_is_refused(probe: Probe) -> None:
    with pytest.raises(KernelError):
        probe.run(99)


def test_figures_are_positive_and_labelled(probe: Probe) -> None:
    clock = measure_clock(probe)
    assert clock.threads == probe.n_threads and 1e6 < clock.hertz.median < 1e11
    assert 0 < measure_barrier(probe).seconds.median < 1
    found = list(measure_compute(probe, "avx2", clock.hertz.median))
    points = [point for point in found if isinstance(point, ComputePoint)]
    assert {point.kind for point in points} >= {"fp32", "int8_nibbles", "int8_bytes"}
    assert all(point.ops_per_second.median > 0 and point.ops_per_cycle for point in points)
    assert [gap.what for gap in found if isinstance(gap, Unavailable)] in ([], ["fp16"])


def test_a_point_of_the_staircase(probe: Probe) -> None:
    caches = (CacheFacts(1, 32 << 10, 1),)
    with Arena(1 << 20) as arena:
        touch_all(probe, arena)
        for kind in ("read", "copy", "triad"):
            point = measure_point(probe, arena, caches, kind, 1 << 20)
            assert point.bytes_per_second.median > 0 and point.level == "DRAM"
            assert 0.9 * (1 << 20) < point.bytes <= 1 << 20


def test_pages_and_storage(tmp_path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(3 << 20))
    with Probe(load_probe(), 1) as probe:
        zeroed, mapped = measure_zeroed(probe, 1 << 30), measure_mapped(probe, path)
    assert mapped.bytes == 3 << 20 and mapped.kind == "mapped"
    assert zeroed.seconds_per_page.median > 0 and mapped.bytes_per_second.median > 0
    found = measure_storage(path)
    assert found.bytes == 3 << 20 and found.bytes_per_second.median > 0
    assert found.cache_bypassed == (found.method != "cached")


def test_what_is_in_the_page_cache_is_seen(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.pread(descriptor, 1 << 20, 0)
        assert cached_share(descriptor) == 1.0
        if drop_cached(descriptor):  # not on a file system that lies in memory
            assert cached_share(descriptor) < 1.0
    finally:
        os.close(descriptor)
