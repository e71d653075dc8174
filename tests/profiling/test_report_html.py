from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgeawq.errors import UsageError
from edgeawq.profiling.ceilings import list_expectations
from edgeawq.profiling.chart_roofline import FLOAT16, MEASURED, PRESENT, list_points
from edgeawq.profiling.report_html import MAX_PROFILES, make_page
from edgeawq.profiling.schema import Note, Profile
from tests.profiling.chromium import Visit, find_chromium, visit
from tests.profiling.example import make_profile

pytest.importorskip("vl_convert", reason="the charts' library is not installed: pip install 'edgeawq[report]'")
needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium: apt-get install chromium")

VOID = {"meta", "br", "hr", "img", "link", "input"}
# Contrast of every text of a chart and of the page against what is behind it (WCAG: 4.5 for small text).
CONTRAST = """
const luminance = (color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((v) => { const c = v / 255;
    return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const wait = setInterval(() => {
  if (!document.documentElement.dataset.ready) return;
  clearInterval(wait);
  let least = 99, checked = 0, wide = document.documentElement.scrollWidth - innerWidth;
  for (const node of document.querySelectorAll("h1, h2, p, li, dd, dt, figcaption, summary, .chart svg text")) {
    if (!node.textContent.trim()) continue;
    const style = getComputedStyle(node);
    const panel = node.closest("figure") || document.body;
    const back = luminance(getComputedStyle(panel).backgroundColor);
    const front = luminance(node instanceof SVGElement ? style.fill : style.color);
    least = Math.min(least, (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05));
    checked += 1;
  }
  document.documentElement.dataset.probe = JSON.stringify({least, checked, wide});
}, 50);
"""


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
    path.write_text(make_page([disturbed()]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pair") / "pair.html"
    other = make_profile(name="other", decode_scale=1.3, created="2026-02-01T00:00:00Z")
    path.write_text(make_page([make_profile(), other, make_profile(name="bare", model=False)]), encoding="utf-8")
    return path


def probe(seen: Visit) -> Mapping[str, Any]:
    found = re.search(r'data-probe="([^"]*)"', seen.document)
    assert found is not None
    value: Mapping[str, Any] = json.loads(found[1].replace("&quot;", '"'))
    return value


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


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_it_is_silent_and_readable(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    seen = visit(page, tmp_path / "browser", width=width, dark=dark, script=CONTRAST)
    assert seen.console == ()
    result = probe(seen)
    assert result["checked"] > 100
    assert result["least"] >= 4.5
    assert result["wide"] <= 0  # nothing sticks out sideways


@needs_browser
def test_every_point_of_the_roofline_is_there(page: Path, tmp_path: Path) -> None:
    seen = visit(page, tmp_path / "browser")
    assert 'data-ready="10"' in seen.document
    roofline = seen.document.partition('id="chart-0"')[2].partition('id="chart-1"')[0]
    decode = [point for point in list_points(make_profile()) if point["phase"] == "decode"]
    for layer, count in (("measured", 6), ("at_the_roof", 10)):
        assert sum((point["form"] == MEASURED) == (layer == "measured") for point in decode) == count
        marks = re.search(rf'class="[^"]*mark-symbol[^"]*{layer}_marks[^"]*".*?</g>', roofline, re.DOTALL)
        assert marks is not None
        drawn = re.findall(r'<path [^>]*aria-label[^>]* d="(M[^"]+)"|<path [^>]* d="(M[^"]+)"', marks[0])
        assert len(drawn) == count
    for word in ("operations per byte", "qkv", "gate_up", "DRAM 12 GB/s", "int8_nibbles 500 Gop/s", FLOAT16, PRESENT):
        assert word in seen.texts
    for word in ("Thermal throttling from second 40", "milliseconds a token", "16 KiB", "seconds to the first token"):
        assert word in seen.texts


@needs_browser
def test_several_profiles_stand_side_by_side(pair: Path, tmp_path: Path) -> None:
    seen = visit(pair, tmp_path / "browser", width=390, script=CONTRAST)
    assert seen.console == ()
    assert "5 regressions against" in seen.texts
    assert "bare 2026-01-31T12:00: Memory and machine" in seen.texts
    assert probe(seen)["wide"] <= 0


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
