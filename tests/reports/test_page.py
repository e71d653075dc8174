from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.quantize.comparison import Comparison, ModelResult, TaskScore, shorten_names
from edgeawq.quantize.histograms import Histogram, ModelHistograms
from edgeawq.quantize.layer_errors import BlockErrors
from edgeawq.quantize.scores import Divergence, EvaluationSetting, ModelScore
from edgeawq.quantize.storage import Storage

pytest.importorskip("vl_convert")

from edgeawq.reports.evaluation_page import make_evaluation_page  # noqa: E402
from edgeawq.reports.layer_charts import average_kinds  # noqa: E402
from edgeawq.reports.page import Chart, Columns, Page, write_page  # noqa: E402
from edgeawq.reports.render import check_spec, render_page  # noqa: E402
from tests.browser import Browser, check_readable  # noqa: E402
from tests.quantize.runs import LINEARS  # noqa: E402
from tests.reports.specs import read_specs  # noqa: E402


def make_result(name: str, perplexity: float, bits: float, blocks: int = 2) -> ModelResult:
    percentiles = {"50": 0.01, "90": 0.1, "95": 0.2, "99": 0.5, "99.9": 1.0}
    return ModelResult(
        name,
        "quantized",
        False,
        ModelScore(perplexity, 0.1, 1000, 0.05, 0.01, Divergence(0.05, 0.001, percentiles, 2.0, 0.9)),
        Storage(1000, 4.0, bits, 1_000_000),
        tuple(BlockErrors(dict.fromkeys(LINEARS, 0.01), 0.02, 0.03) for _ in range(blocks)),
    )


def make_comparison(*results: ModelResult) -> Comparison:
    reference = ModelResult("models/float", "float", True, ModelScore(16.0, 0.1, 1000), Storage(1000, None, 16.0, 2))
    histogram = Histogram(-1.0, 1.0, (0, 3, 5, 0))
    return Comparison(
        "</script><b>.txt",
        EvaluationSetting(),
        12,
        12276,
        (reference, *results),
        ModelHistograms({"q_proj": histogram}, {"qkv": histogram}),
    )


@pytest.mark.parametrize(
    "results",
    [
        (make_result("a/one", 17.0, 4.3),),
        (make_result("a/one", 17.0, 4.3), make_result("b/two", 1e9, 2.3)),
        (make_result("a/one", float("inf"), 4.3, blocks=0),),
        (),
    ],
)
def test_every_chart_compiles(results: tuple[ModelResult, ...]) -> None:
    specs = read_specs(render_page(make_evaluation_page(make_comparison(*results))))
    assert len(specs) >= 2
    for spec in specs.values():
        check_spec(spec)


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    page = make_evaluation_page(make_comparison(make_result("a/<one>", 17.0, 4.3)))
    write_page(tmp_path / "page.html", page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert content == render_page(page)
    # The charts' script knows addresses by name (schemas, namespaces); the page itself must not load any.
    outside = re.sub(r"<script.*?</script>", "", content, flags=re.DOTALL)
    assert "http" not in outside.replace("http-equiv", "")
    assert "default-src 'none'" in outside
    assert not re.search(r"<(?:link|img|iframe)|@import|url\(", outside)
    assert content.count("</script>") == content.count("<script") == 4
    assert "&lt;one&gt;" in outside and "<one>" not in outside
    assert len(read_specs(content)) == content.count('<div class="plot"') == 7
    assert len(content) < 1_500_000


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_in_a_browser_it_is_silent_and_readable(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    comparison = make_comparison(
        make_result("a/one", 17.0, 4.3), make_result("b/a-rather-long-name-of-a-model", 1e9, 2.3)
    )
    write_page(tmp_path / "page.html", make_evaluation_page(comparison))
    browser.open(tmp_path / "page.html", width=width, dark=dark)
    check_readable(browser, least_texts=100)
    assert browser.evaluate("document.documentElement.dataset.drawn") == "9"
    assert "Error by layer" in browser.text


def test_tasks_and_remarks_are_shown() -> None:
    result = replace(make_result("one", 17.0, 4.3), tasks={"arc": TaskScore(0.5, 0.01)}, remark="a remark")
    content = render_page(make_evaluation_page(make_comparison(result)))
    assert "50.0 % ± 1.0" in content and "a remark" in content


def test_pages_that_cannot_be_written(tmp_path: Path) -> None:
    from edgeawq.reports.page import check_page

    with pytest.raises(UsageError, match="cannot be written"):
        check_page(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        check_page(tmp_path / "absent" / "page.html")
    check_page(tmp_path / "page.html")


def test_names_are_short_where_they_differ() -> None:
    assert shorten_names(["a/b/one", "c/two/", "embedded:x"]) == ["one", "two", "embedded:x"]
    assert shorten_names(["a/one", "b/one"]) == ["a/one", "b/one"]


def list_titles(page: Page) -> set[str]:
    groups = [part for section in page.sections for part in section.parts if isinstance(part, Columns)]
    return {part.title for group in groups for part in group.parts if isinstance(part, Chart)}


def test_a_chart_that_would_hold_one_point_is_left_out() -> None:
    one, two = make_result("a/one", 17.0, 4.3), make_result("b/two", 18.0, 3.3)
    comparative = {"Divergence against size", "Agreement with the float model"}
    titles = [list_titles(make_evaluation_page(make_comparison(*results))) for results in ((one,), (one, two))]
    assert not titles[0] & comparative
    assert titles[1] - titles[0] == comparative


def test_experts_are_averaged_by_projection() -> None:
    layers = {"self_attn.q_proj": 0.1, "mlp.experts.0.up_proj": 0.2, "mlp.experts.1.up_proj": 0.4}
    found = average_kinds(BlockErrors(layers, 0.02, 0.03))
    assert found == {"q": 0.1, "up": pytest.approx(0.3)}
