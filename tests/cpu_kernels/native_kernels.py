"""Build and load single kernels on the machine that runs the tests."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from cpu_kernels import abi
from cpu_kernels.build import WEIGHT_BITS, build
from cpu_kernels.isa.catalog import ISAS
from cpu_kernels.linear import reference_linear
from device_profiles.target import Target
from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.runtime.cpu import machine, runnable_isas
from edgeawq.runtime.native import NativeObject, load_object
from packager.records import LAYOUTS, Layout

# The instruction sets that this CPU runs, and the meaning in plain LLVM of those it does not.
ALL = ("avx2", "avxvnni", "avx512vnni", "neon", "neon_dotprod")
# Differs from neon_dotprod in linear layers on int8 activations and nowhere else: no more than those are built.
LINEAR_ONLY = ("neon_i8mm",)


def _runnable(isas: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(isa if isa in runnable_isas() else f"{isa}_portable" for isa in isas)


VARIANTS = _runnable(ALL)
LINEAR_VARIANTS = (*VARIANTS, *_runnable(LINEAR_ONLY))


def host_target() -> Target:
    if machine() == "x86_64":
        return Target("x86_64-unknown-linux-gnu", "x86-64-v3", (), "avx2")
    return Target("aarch64-unknown-linux-gnu", "generic", ("+neon",), "neon")


@dataclass(frozen=True)
class Kernels:
    """A loaded object of single kernels, and the layout it wants."""

    native: NativeObject
    layout: Layout

    def call(self, symbol: str, *arguments: int) -> None:
        self.native.function(symbol, len(arguments))(*arguments)


@functools.cache
def load_kernels(variant: str) -> Kernels:
    base = variant.removesuffix("_portable")
    target = host_target()
    if variant == base:
        target = Target(target.triple, target.cpu, _features(base), base)
    kind = "linear" if base in LINEAR_ONLY else "kernels"
    return Kernels(load_object(build(target, variant, kind, bits=WEIGHT_BITS)[0]), LAYOUTS[ISAS[base].layout])


def _features(isa: str) -> tuple[str, ...]:
    return {
        "avx512vnni": ("+avx512f", "+avx512bw", "+avx512vl", "+avx512dq", "+avx512vnni"),
        "avxvnni": ("+avxvnni",),
        "neon_dotprod": ("+neon", "+dotprod"),
        "neon_i8mm": ("+neon", "+dotprod", "+i8mm"),
        "neon": ("+neon",),
    }.get(isa, ())


def address(array: np.ndarray) -> int:
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def random_linear(
    rng: np.random.Generator, out_features: int, in_features: int, bits: int, group_size: int
) -> QuantizedLinear:
    groups = in_features // group_size
    top = (1 << bits) - 1
    return QuantizedLinear(
        q=rng.integers(0, top + 1, (out_features, in_features), dtype=np.uint8),
        scales=rng.uniform(0.001, 0.1, (out_features, groups)).astype(np.float16),
        zeros=rng.integers(0, top + 1, (out_features, groups), dtype=np.uint8),
        bits=bits,
        group_size=group_size,
    )


def descriptor(weights: np.ndarray, linear: QuantizedLinear, *, out_features: int = 0, bias: int = 0) -> np.ndarray:
    words = np.zeros(abi.LINEAR_WORDS, np.int64)
    words[abi.WEIGHTS] = address(weights)
    words[abi.OUT_FEATURES] = out_features or linear.shape[0]
    words[abi.IN_FEATURES] = linear.shape[1]
    words[abi.GROUP_SIZE] = linear.group_size
    words[abi.BITS] = linear.bits
    words[abi.BIAS] = bias
    return words


def activation_rows(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows as the int8 kernels read them: uint8 [tokens, row bytes], the float64 values that they stand for)."""
    from cpu_kernels.elementwise import reference_quantize_row

    tokens, width = x.shape
    rows = np.full((tokens, abi.activation_row_bytes(width)), 0xA5, np.uint8)
    meant = np.zeros(x.shape)
    for token in range(tokens):
        q, scales, sums = reference_quantize_row(x[token], group_size)
        data = np.concatenate([q.view(np.uint8), scales.view(np.uint8), sums.view(np.uint8)])
        rows[token, : data.size] = data
        meant[token] = (q.reshape(-1, group_size) * scales[:, None].astype(np.float64)).reshape(-1)
    return rows, meant


def expected_linear(x: np.ndarray, linear: QuantizedLinear) -> np.ndarray:
    return reference_linear(x, linear.q, linear.scales, linear.zeros, linear.group_size)


def magnitude(x: np.ndarray, linear: QuantizedLinear) -> np.ndarray:
    """Σ|x|·(q + zero)·scale, float64 [tokens, out_features]: what rounding errors of a dot product are relative to.

    The kernels sum weights and zero points apart, so both count.
    """

    def widened(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.astype(np.float64), linear.group_size, axis=1)

    weights = (linear.q + widened(linear.zeros)) * widened(linear.scales)
    return np.asarray(np.abs(x.astype(np.float64)) @ weights.T)


def assert_sums_agree(actual: np.ndarray, expected: np.ndarray, magnitudes: np.ndarray) -> None:
    """Each sum is right to float32 rounding of its terms, also where they cancel; a missing term is far outside."""
    worst = float(np.max(np.abs(actual - expected) / magnitudes))
    assert worst < 5e-7, f"off by {worst:.2g} of the terms' magnitude"


def normalized_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Mean squared error over mean square of the reference."""
    return float(np.sum((actual - expected) ** 2) / max(np.sum(expected**2), 1e-300))
