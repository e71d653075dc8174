from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.profile import load_profile
from device_profiles.roofline import gaussian_rounding_error
from edgeawq.checkpoints.grid import dequantize, quantize_rtn
from edgeawq.errors import UsageError
from edgeawq.planning.device import describe_device
from edgeawq.planning.plan import QUANTIZER_BITS, Choice, Plan, Workload, make_plan, mark_choices
from edgeawq.planning.predict import Speed
from edgeawq.planning.shape import read_shape
from edgeawq.planning.sizes import Scheme
from edgeawq.quantize.settings import BITS as SETTINGS_BITS

GIB = 1 << 30


def plan(model: str, device: str, processor: str = "", memory: int | None = None, **workload: int) -> Plan:
    options = {"prompt_tokens": 16, **workload}
    return make_plan(read_shape(model), describe_device(load_profile(device), processor, memory), Workload(**options))


def find(result: Plan, name: str) -> Choice:
    return next(choice for choice in result.choices if str(choice.scheme) == name)


def test_llama_2_7b_on_a_raspberry_pi_4_as_in_the_paper() -> None:
    # Table of TinyChat on a Raspberry Pi 4B: 0.7 tokens/s of Llama-2-7B.
    choice = find(plan("llama-2-7b", "pi4", memory=8 * GIB), "w4g128")
    assert choice.fits
    assert choice.decode.expected_s is not None and choice.decode.ceiling_s is not None
    assert 0.7 <= 1 / choice.decode.expected_s < 1 / choice.decode.ceiling_s < 1.7
    assert choice.decode.bound == "memory"


def test_llama_2_7b_on_an_agx_orin_as_in_the_paper() -> None:
    choice = find(plan("llama-2-7b", "orin-agx"), "w4g128")
    assert choice.decode.expected_s is not None and choice.decode.ceiling_s is not None
    assert 38.6 <= 1 / choice.decode.expected_s < 1 / choice.decode.ceiling_s < 51


def test_llama_2_70b_fits_an_agx_orin_as_in_the_paper() -> None:
    result = plan("llama-2-70b", "orin-agx")
    choice = find(result, "w4g128")
    assert choice.fits and result.pick is choice
    assert choice.weights_bytes == pytest.approx(36e9, rel=0.01)
    assert choice.decode.expected_s is not None
    assert 3.5 < 1 / choice.decode.expected_s < 5
    assert not find(result, "w8g128").fits
    assert result.float16_bytes > 2 * 64 * GIB


def test_llama_2_7b_does_not_fit_a_small_pi() -> None:
    result = plan("llama-2-7b", "pi4", memory=2 * GIB)
    assert result.pick is None
    assert not any(choice.fits or choice.is_pareto for choice in result.choices)


def test_the_cores_of_an_orin_are_slower_than_its_gpu() -> None:
    cpu = find(plan("llama-2-7b", "orin-agx", "cpu"), "w4g128")
    gpu = find(plan("llama-2-7b", "orin-agx", "gpu"), "w4g128")
    assert cpu.decode.ceiling_s is not None and gpu.decode.ceiling_s is not None
    assert cpu.decode.ceiling_s > gpu.decode.ceiling_s
    with pytest.raises(UsageError):
        plan("llama-2-7b", "pi4", "gpu")


def test_expected_is_never_above_the_ceiling() -> None:
    for device in ("pi4", "pi5", "orin-nano", "orin-agx", "arm-i8mm", "laptop-avx2", "laptop-avx512"):
        for choice in plan("smollm2-135m", device).choices:
            for speed in (choice.decode, choice.first_token):
                assert speed.ceiling_s is not None
                assert speed.expected_s is None or speed.expected_s >= speed.ceiling_s


def test_longer_contexts_take_more_memory_and_longer_prompts_more_time() -> None:
    short, long = (plan("tinyllama-1.1b", "pi5", context_length=n, prompt_tokens=n) for n in (256, 2048))
    for a, b in zip(short.choices, long.choices, strict=True):
        assert a.scheme == b.scheme
        assert b.kv_bytes == 8 * a.kv_bytes
        assert b.memory_bytes > a.memory_bytes
        assert b.decode.ceiling_s is not None and a.decode.ceiling_s is not None
        assert b.decode.ceiling_s > a.decode.ceiling_s
        assert b.first_token.ceiling_s is not None and a.first_token.ceiling_s is not None
        assert b.first_token.ceiling_s > 7 * a.first_token.ceiling_s


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(UsageError, match="2,048"):
        plan("tinyllama-1.1b", "pi5", context_length=4096)


def test_only_what_the_quantizer_writes_is_offered() -> None:
    assert QUANTIZER_BITS == SETTINGS_BITS
    assert {choice.scheme.bits for choice in plan("smollm2-135m", "pi4").choices if choice.can_build} == set(
        SETTINGS_BITS
    )


def test_static_loops_are_those_of_the_benchmark_table() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "benchmarks.md").read_text(encoding="utf-8")
    row = re.compile(
        r"\| (pi4|pi5|arm-i8mm) \| edgeawq, (\d)-bit weights \| (\d) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|"
    )
    written = {
        (board, int(bits), int(tokens), group, float(cycles))
        for board, bits, tokens, *both in row.findall(text)
        for group, cycles in zip((64, 128), both, strict=True)
    }
    profiles = {
        (board, loop.bits, loop.tokens, loop.group_size, loop.cycles)
        for board in ("pi4", "pi5", "arm-i8mm")
        for loop in load_profile(board).loops
    }
    assert written and written == profiles


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (4, 128), (3, 128), (8, 32), (2, 64)])
def test_rounding_error_is_that_of_the_quantizers_grid(bits: int, group_size: int) -> None:
    weights = np.random.default_rng().standard_normal((1024, 512)).astype(np.float32)
    restored = dequantize(quantize_rtn(weights, bits, group_size))
    measured = float(np.sqrt(np.mean((restored - weights) ** 2)))
    assert gaussian_rounding_error(bits, group_size) == pytest.approx(measured, rel=0.08)


def make_choice(nbytes: int, error: float, headroom: int) -> Choice:
    speed = Speed(None, None, None)
    return Choice(Scheme(4, 64, 8), True, nbytes, 4.0, nbytes, 0, 0, nbytes, headroom, nbytes, error, speed, speed)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()), max_size=12))
def test_marked_choices_are_exactly_the_unbeaten_ones(values: list[tuple[int, int, bool]]) -> None:
    marked = mark_choices([make_choice(nbytes, error / 10, 10 if fits else -1) for nbytes, error, fits in values])
    fitting = [choice for choice in marked if choice.fits]
    for choice in marked:
        beaten = any(
            other.bytes_per_token <= choice.bytes_per_token
            and other.rounding_error <= choice.rounding_error
            and (other.bytes_per_token < choice.bytes_per_token or other.rounding_error < choice.rounding_error)
            for other in fitting
        )
        assert choice.is_pareto == (choice.fits and not beaten)
    assert bool(fitting) == any(choice.is_pareto for choice in marked)
    assert sum(choice.is_pick for choice in marked) == bool(fitting)


def test_equal_choices_do_not_beat_each_other() -> None:
    same = make_choice(5, 0.5, 1)
    assert all(choice.is_pareto for choice in mark_choices([same, replace(same)]))
