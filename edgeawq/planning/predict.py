"""Predicted speeds: what the roof allows, and what is to be expected of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpu_kernels import abi
from device_profiles.roofline import loop_ops_per_s, time_at_roof_s
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.planning.device import PlanDevice
from edgeawq.planning.sizes import Scheme, count_weights, kv_bytes_read
from packager.manifest import TensorEntry
from packager.pack import count_bytes_per_token

Bound = Literal["memory", "compute"]


@dataclass(frozen=True)
class Work:
    """Bytes moved and operations done (a multiply-add is two)."""

    bytes: int
    operations: int


@dataclass(frozen=True)
class Speed:
    """Seconds of one stage. ceiling: at the roof; expected: with the efficiency reached before; None = not known."""

    ceiling_s: float | None
    expected_s: float | None
    bound: Bound | None


def decode_work(config: ModelConfig, tensors: tuple[TensorEntry, ...], position: int, kv_bits: int) -> Work:
    """What one token costs with `position` tokens in the cache: weights, keys and values once."""
    body, heads = count_weights(config)
    head = heads if config.tie_word_embeddings else heads // 2
    weights = count_bytes_per_token(tensors, config.tie_word_embeddings)
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * position
    return Work(weights + kv_bytes_read(config, position, kv_bits), 2 * (body + head) + attention)


def prefill_work(
    config: ModelConfig, tensors: tuple[TensorEntry, ...], prompt: int, kv_bits: int, step: int = abi.MAX_TOKENS
) -> Work:
    """What a prompt costs up to its first answered token: the weights once a step of `step` tokens, the head once."""
    body, heads = count_weights(config)
    head = heads if config.tie_word_embeddings else heads // 2
    head_bytes = sum(t.nbytes for t in tensors if t.name == ("embed" if config.tie_word_embeddings else "head"))
    weights = count_bytes_per_token(tensors, config.tie_word_embeddings) - head_bytes
    steps = -(-prompt // step)
    pairs = prompt * (prompt + 1) // 2  # of a token and one that it sees
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * pairs
    cached = kv_bytes_read(config, 1, kv_bits) * sum(min(prompt, step * (i + 1)) for i in range(steps))
    return Work(steps * weights + head_bytes + cached, 2 * (body * prompt + head) + attention)


def predict_decode(device: PlanDevice, scheme: Scheme, work: Work) -> Speed:
    """Seconds of a token."""
    if device.bandwidth is None:
        return Speed(None, None, None)
    memory = time_at_roof_s(work.bytes, 0, device.bandwidth.value)
    compute = _compute_s(device, scheme, work, many_tokens=False)
    ceiling = max(memory, compute or 0.0)
    efficiency = device.decode_efficiency
    expected = None if efficiency is None else max(ceiling, memory / efficiency.value)
    return Speed(ceiling, expected, "memory" if memory >= ceiling else "compute")


def predict_first_token(device: PlanDevice, scheme: Scheme, work: Work) -> Speed:
    """Seconds up to the first token of the answer; the model is loaded."""
    if device.bandwidth is None:
        return Speed(None, None, None)
    memory = time_at_roof_s(work.bytes, 0, device.bandwidth.value)
    compute = _compute_s(device, scheme, work, many_tokens=True)
    ceiling = max(memory, compute or 0.0)
    expected = None
    if device.prefill_efficiency is not None and device.peak_ops is not None and device.decode_efficiency is not None:
        reached = work.operations / (device.peak_ops.value * device.prefill_efficiency.value)
        expected = max(ceiling, reached, memory / device.decode_efficiency.value)
    return Speed(ceiling, expected, "memory" if memory >= ceiling else "compute")


def find_loop_ops(device: PlanDevice, scheme: Scheme, *, many_tokens: bool) -> float | None:
    """Operations per second by the static analysis of the kernel's loop; None where there is none for the scheme.

    A group of 32 is reckoned like one of 64: a little too fast, as a ceiling may be.
    """
    fitting = [loop for loop in device.loops if loop.bits == scheme.bits and (loop.tokens > 1) == many_tokens]
    if not fitting or device.clock_hz is None:
        return None
    loop = min(fitting, key=lambda loop: abs(loop.group_size - scheme.group_size))
    return loop_ops_per_s(device.cores, device.clock_hz, loop.cycles)


def _compute_s(device: PlanDevice, scheme: Scheme, work: Work, *, many_tokens: bool) -> float | None:
    rates = [rate for rate in (find_loop_ops(device, scheme, many_tokens=many_tokens),) if rate is not None]
    if device.peak_ops is not None:
        rates.append(device.peak_ops.value)
    return work.operations / min(rates) if rates else None
