from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from edgeawq.profiling.compare import compare_profiles
from edgeawq.profiling.report_plot import PlotPoint, draw_profile, draw_roofline, format_rate
from edgeawq.profiling.report_text import make_comparison, make_report
from edgeawq.profiling.schema import Note, Profile
from edgeawq.profiling.units import binary_size, show, three_digits, with_prefix
from tests.profiling.example import make_profile
from tests.profiling.profiles import profiles


def render(thing: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(thing)
    return captured.get()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_the_terminal_and_cuts_nothing(width: int) -> None:
    text = render(make_report(make_profile()), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for expected in (
        "Example board",
        "Decode is memory-bound at 78 % of the roof",
        "int8_nibbles",
        "A qkv, o, gate_up, down",
        "Decode at 64 tokens of context: 104 tokens/s",
        "gate_up",
        "16 KiB",
        "not available: fp16",
    ):
        assert expected in text


def test_without_a_model_the_machine_is_reported() -> None:
    text = render(make_report(make_profile(model=False)))
    assert "Read bandwidth" in text and "Decode at" not in text


def test_disturbances_are_in_the_report() -> None:
    profile = replace(make_profile(), notes=(Note("throttled", "decode", 40.0, "the clock fell to 1.5 GHz"),))
    text = render(make_report(profile))
    assert "Thermal throttling from second 40" in text and "the clock fell to 1.5 GHz" in text


def test_a_comparison_marks_what_became_worse() -> None:
    profiles_ = [make_profile(), make_profile(decode_scale=1.3)]
    text = render(make_comparison(compare_profiles(profiles_, ["before", "after"])))
    assert "5 regressions against before" in text
    (line,) = [line for line in text.splitlines() if "decode at 64 tokens" in line]
    assert line.rstrip().endswith("▼")
    assert "No regression" in render(make_comparison(compare_profiles(profiles_[::-1])))
    assert "disturbed machine" not in text
    busy = replace(profiles_[1], notes=(Note("busy", "decode", 1.0, "another program"),))
    assert "Measured on a disturbed machine: after." in render(
        make_comparison(compare_profiles([profiles_[0], busy], ["before", "after"]))
    )


def test_the_plot_has_every_operation_under_its_roof() -> None:
    profile = make_profile()
    assert profile.model is not None
    plot = draw_profile(profile, profile.model.phases[1])
    names = ", ".join(names for _, names in plot.legend)
    assert set(names.split(", ")) == {"qkv", "o", "gate_up", "down", "head", "attention"}
    for letter, _ in plot.legend:
        assert sum(line.count(letter) for line in plot.lines) >= 1
    assert draw_roofline([], [], []).lines == ()


RATE = st.floats(1e6, 1e15)
INTENSITY = st.floats(1e-3, 1e6)


@given(
    memory=st.lists(RATE, min_size=1, max_size=4),
    compute=st.lists(RATE, min_size=1, max_size=3),
    points=st.lists(st.tuples(INTENSITY, st.floats(1, 1e15)), max_size=8),
)
def test_any_roofline_can_be_drawn(
    memory: list[float], compute: list[float], points: list[tuple[float, float]]
) -> None:
    plot = draw_roofline(
        [(f"M{i}", rate) for i, rate in enumerate(memory)],
        [(f"C{i}", rate) for i, rate in enumerate(compute)],
        [PlotPoint(f"p{i}", x, y) for i, (x, y) in enumerate(points)],
    )
    assert plot.lines and max(map(len, plot.lines)) <= 80
    assert sum(len(names.split(", ")) for _, names in plot.legend) == len(points)


@settings(max_examples=30, deadline=None)
@given(profiles())
def test_any_document_can_be_reported(profile: Profile) -> None:
    text = render(make_report(profile))
    assert max(map(cell_len, text.splitlines())) <= 80


def test_figures() -> None:
    assert [three_digits(x) for x in (0, 0.12345, 12.345, 1234.5, 0.0000123)] == [
        "0",
        "0.123",
        "12.3",
        "1230",
        "0.0000123",
    ]
    assert with_prefix(1.6e-6, "s") == "1.6 µs"
    assert with_prefix(13.52e9, "B/s") == "13.5 GB/s"
    assert show(104.28, "tokens/s") == "104 tokens/s"
    assert show(0.0378, "s") == "37.8 ms"
    assert [binary_size(n) for n in (512, 32 << 10, 16 << 20, 4 << 30)] == ["512 B", "32 KiB", "16 MiB", "4 GiB"]
    assert [format_rate(x) for x in (1.5e12, 2e11, 3e6, 12)] == ["1.5T", "200G", "3M", "12"]
