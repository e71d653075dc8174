from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.profiling.ceilings import list_expectations
from edgeawq.profiling.chart_roofline import FLOAT16, MEASURED, PRESENT, list_points
from edgeawq.profiling.report_html import MAX_PROFILES, make_page
from edgeawq.profiling.schema import Note, Profile
from edgeawq.reports.page import write_page
from tests.browser import Browser, check_readable
from tests.profiling.example import make_profile

pytest.importorskip("vl_convert", reason="the charts' library is not installed: pip install 'edgeawq[host]'")

VOID = {"meta", "br", "hr", "img", "link", "input"}
# The symbols that are drawn in a layer of a chart; those that are filtered out are not.
COUNT_MARKS = "document.querySelectorAll('#chart-0 .mark-symbol.{}_marks path').length"


class Checker(HTMLParser):
    """Every element that is opened is closed, in order; collects what could reach the network."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def disturbed() -> Profile:
    profile = make_profile()
    return replace(
        profile,
        notes=(Note("throttled", "decode", 40.0, "</script><b>not HTML & no end</b>"),),
        device=replace(profile.device, model='Board "<script>alert(1)</script>"'),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, make_page([disturbed()]))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pair") / "pair.html"
    other = make_profile(name="other", decode_scale=1.3, created="2026-02-01T00:00:00Z")
    write_page(path, make_page([make_profile(), other, make_profile(name="bare", model=False)]))
    return path


def test_the_page_is_whole_and_needs_no_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.addresses == []
    assert "default-src 'none'" in text
    assert len(text) < 2_000_000


def test_what_a_profile_says_is_text_and_no_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;b&gt;not HTML" in text
    assert "<script>alert" not in text


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_it_is_silent_and_readable(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    check_readable(browser, least_texts=200)
    assert browser.evaluate("document.documentElement.dataset.drawn") == "10"


def test_dark_is_dark_and_paper_is_light(browser: Browser, page: Path) -> None:
    colors = []
    for media in ("screen", "print"):
        browser.open(page, dark=True, media=media)
        check_readable(browser, least_texts=200)
        colors.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(20, 23, 28)", "rgb(255, 255, 255)"]


def test_every_point_of_the_roofline_is_there(browser: Browser, page: Path) -> None:
    browser.open(page)
    points = list_points(make_profile())
    for stage, phases in (("decode", {"decode"}), ("prefill", {"prefill"}), ("both", {"decode", "prefill"})):
        if stage != "decode":
            browser.evaluate(
                f"{{ const menu = document.querySelector('#chart-0 select'); menu.value = '{stage}';"
                " menu.dispatchEvent(new Event('change')) }"
            )
        for layer, is_measured in (("measured", True), ("at_the_roof", False)):
            wanted = [p for p in points if p["phase"] in phases and (p["form"] == MEASURED) == is_measured]
            browser.wait_for(f"{COUNT_MARKS.format(layer)} == {len(wanted)}")
    text = browser.text
    for word in ("operations per byte", "qkv", "gate_up", "DRAM 12 GB/s", "int8_nibbles 500 Gop/s", FLOAT16, PRESENT):
        assert word in text
    for word in ("Thermal throttling from second 40", "milliseconds a token", "16 KiB", "seconds to the first token"):
        assert word in text


def test_several_profiles_stand_side_by_side(browser: Browser, pair: Path) -> None:
    browser.open(pair, width=390)
    check_readable(browser, least_texts=200)
    assert "5 regressions against" in browser.text
    assert "bare 2026-01-31T12:00: Memory and machine" in browser.text


def test_too_many_profiles_are_refused() -> None:
    with pytest.raises(UsageError):
        make_page([make_profile(model=False)] * (MAX_PROFILES + 1))


def test_float16_moves_as_many_times_the_bytes_as_it_has_bits() -> None:
    points = {(p["operation"], p["form"]): p for p in list_points(make_profile()) if p["phase"] == "decode"}
    for name in ("qkv", "o", "gate_up", "down"):
        wide, narrow = points[name, FLOAT16], points[name, PRESENT]
        assert wide["x"] == pytest.approx(1.0, abs=0.02)  # the AWQ paper's 1 FLOP/byte
        assert narrow["x"] == pytest.approx(3.66, abs=0.05)  # 4 less scales and activations
        assert narrow["y"] / wide["y"] == pytest.approx(narrow["x"] / wide["x"])


def test_ceilings_are_bytes_over_bandwidth() -> None:
    profile = make_profile()
    assert profile.model is not None
    expectations = {(e.what, e.tokens): e for e in list_expectations(profile)}
    phase = profile.model.phases[1]
    first = expectations["decode", 64]
    assert first.ceiling_s == pytest.approx(phase.bytes_per_step / 12e9)
    assert first.expected_s == pytest.approx(first.measured_s)
    more = expectations["decode", 4000]
    assert more.ceiling_s - first.ceiling_s == pytest.approx((4000 - 64) * profile.model.kv_bytes_per_token / 12e9)
    assert expectations["first_token", 1024].ceiling_s > expectations["first_token", 16].ceiling_s
    assert all(0 < e.share_of_ceiling <= 1 for e in expectations.values())
    assert list_expectations(make_profile(model=False)) == ()
