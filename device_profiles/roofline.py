"""The roofline: how fast a device can go at best, from its bandwidth, its peak rate and the work per byte.

Source: Williams, Waterman, Patterson, "Roofline", CACM 2009; for language models section 4.1 of the AWQ paper
(MLSys 2024). Every function is plain arithmetic on positive numbers; anything else raises ProfileError.
"""

from __future__ import annotations

import math

from edgeawq.errors import ProfileError


def ridge_point(peak_flop_per_s: float, bandwidth_bytes_per_s: float) -> float:
    """The arithmetic intensity in FLOP/byte from which on the peak rate, and no longer the memory, is the limit."""
    _check(peak_flop_per_s=peak_flop_per_s, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    return peak_flop_per_s / bandwidth_bytes_per_s


def attainable_flop_per_s(peak_flop_per_s: float, bandwidth_bytes_per_s: float, flop_per_byte: float) -> float:
    """The best rate in FLOP/s of work with this arithmetic intensity."""
    _check(peak_flop_per_s=peak_flop_per_s, bandwidth_bytes_per_s=bandwidth_bytes_per_s, flop_per_byte=flop_per_byte)
    return min(peak_flop_per_s, bandwidth_bytes_per_s * flop_per_byte)


def bounded_by(peak_flop_per_s: float, bandwidth_bytes_per_s: float, flop_per_byte: float) -> str:
    """What limits work with this arithmetic intensity: "memory" below the ridge point, "compute" from there on."""
    _check(flop_per_byte=flop_per_byte)
    return "memory" if flop_per_byte < ridge_point(peak_flop_per_s, bandwidth_bytes_per_s) else "compute"


def decode_ceiling_tokens_per_s(bandwidth_bytes_per_s: float, bytes_per_token: float) -> float:
    """The most tokens per second of a decoder that reads `bytes_per_token` from memory for each of them."""
    _check(bandwidth_bytes_per_s=bandwidth_bytes_per_s, bytes_per_token=bytes_per_token)
    return bandwidth_bytes_per_s / bytes_per_token


def weight_bytes(n_weights: float, bits_per_weight: float) -> float:
    """Bytes of `n_weights` weights, scales and zeros included in `bits_per_weight` (w4g128: 4.156)."""
    _check(n_weights=n_weights, bits_per_weight=bits_per_weight)
    return n_weights * bits_per_weight / 8


def gemv_intensity_flop_per_byte(bits_per_weight: float, batch: int = 1) -> float:
    """FLOP per byte of a matrix-vector product: one multiply and one add per weight and batch row."""
    _check(bits_per_weight=bits_per_weight, batch=batch)
    return 2 * batch * 8 / bits_per_weight


def time_at_roof_s(
    moved_bytes: float, operations: float, bandwidth_bytes_per_s: float, peak_ops_per_s: float | None = None
) -> float:
    """The least seconds for work that moves so many bytes and does so many operations, both at the same time.

    Without a peak rate only the memory counts. Either amount may be 0.
    """
    _check(bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    _check_amounts(moved_bytes=moved_bytes, operations=operations)
    memory = moved_bytes / bandwidth_bytes_per_s
    if peak_ops_per_s is None:
        return memory
    _check(peak_ops_per_s=peak_ops_per_s)
    return max(memory, operations / peak_ops_per_s)


def loop_ops_per_s(cores: int, clock_hz: float, cycles_for_32_weights: float) -> float:
    """Operations per second of all cores in a loop that takes so many cycles for 32 weights and one token."""
    _check(cores=cores, clock_hz=clock_hz, cycles_for_32_weights=cycles_for_32_weights)
    return 64 * cores * clock_hz / cycles_for_32_weights


def gaussian_rounding_error(bits: int, group_size: int) -> float:
    """Expected relative error (root mean square) of normally distributed weights on a `bits` grid in groups.

    A group's grid spans its range, and rounding is uniform within a step: range / (2^bits - 1) / sqrt(12), in units of
    the weights' deviation. A stand-in for quality where nothing was evaluated: 0.0905 for 4 bits in groups of 64.
    """
    if bits < 1 or group_size < 2:
        raise ProfileError(f"{bits} bits in groups of {group_size} are no grid")
    step, span, x = 0.01, 0.0, -8.0
    while x < 8.0:  # range of n normal variables: the integral of 1 - F(x)^n - (1 - F(x))^n
        below = 0.5 * math.erfc(-x / math.sqrt(2))
        span += step * (1.0 - below**group_size - (1.0 - below) ** group_size)
        x += step
    return float(span / (2**bits - 1) / math.sqrt(12))


def _check_amounts(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value) or value < 0:
            raise ProfileError(f"{name} is {value}, neither 0 nor a positive number")


def _check(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value) or value <= 0:
            raise ProfileError(f"{name} is {value}, not a positive number")
