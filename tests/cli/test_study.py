from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeawq.cli.study import command
from edgeawq.cli.study_table import make_bars
from edgeawq.errors import EdgeawqError, UsageError
from tests.quantize.runs import SHAPE, write_text
from tests.reports.specs import read_specs
from tests.tiny_models import make_tiny_awq_checkpoint, make_tiny_hf_checkpoint

QUICK = ("--group-size", "32", "--tokens", "256", "--chunk", "128", "--threads", "2")
CHANNELS = (*QUICK, "--calib-tokens", "512")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_text(folder / "prose.txt", 1, 3000)
    write_text(folder / "code.txt", 2, 3000)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf_checkpoint(tmp_path_factory.mktemp("models") / "tiny", 1, **SHAPE)


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(command, [str(argument) for argument in arguments])


def refuse(*arguments: object) -> EdgeawqError:
    result = run(*arguments)
    assert isinstance(result.exception, EdgeawqError), result.output
    return result.exception


def measure(*arguments: object) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, list)
    return found


def test_salient(model: Path, texts: Path) -> None:
    (study,) = measure("salient", model, "--text", texts / "prose.txt", "--percents", "5,50", *CHANNELS)
    assert study["name"] == "salient" and len(study["rows"]) == 2 + 2 * 3
    shown = run("salient", model, "--text", texts / "prose.txt", "--percents", "5", *CHANNELS)
    assert shown.exit_code == 0, shown.output
    assert "weight norm" in shown.stdout and "3 bits in groups of 32" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_scale(model: Path, texts: Path) -> None:
    by_factor, by_power = measure(
        "scale", model, "--text", texts / "prose.txt", "--calib", texts / "code.txt",
        "--factors", "1,2", "--exponents", "0,0.5", *CHANNELS,
    )  # fmt: skip
    assert [row["factor"] for row in by_factor["rows"]] == [1.0, 2.0]
    assert by_factor["rows"][0]["changed_percent"] == 0.0
    assert [row["factor"] for row in by_power["rows"]] == [0.0, 0.5]


def test_calibration_studies(model: Path, texts: Path) -> None:
    (study,) = measure(
        "calib-size",
        model,
        "--text",
        texts / "prose.txt",
        "--sizes",
        "256,512",
        "--methods",
        "awq",
        "--bits",
        4,
        *QUICK,
    )
    assert [row["tokens"] for row in study["rows"]] == [256, 512]
    arguments = ("--domain", f"prose={texts / 'prose.txt'}", "--domain", f"code={texts / 'code.txt'}")
    (study,) = measure("calib-shift", model, *arguments, "--methods", "rtn", "--bits", 4, *QUICK)
    assert [row["pair"] for row in study["rows"]] == ["prose → prose", "prose → code", "code → prose", "code → code"]


def test_pages(model: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    from edgeawq.quantize.study import Column, Plot, Study
    from edgeawq.reports.render import check_spec, render_page
    from edgeawq.reports.study_page import make_study_page

    page = tmp_path / "page.html"
    result = run(
        "scale", model, "--text", texts / "prose.txt", "--factors", "1,2", "--exponents", "0", "--html", page, *CHANNELS
    )
    assert result.exit_code == 0, result.output
    assert page.stat().st_size > 100_000
    columns = (Column("x", "x"), Column("y", "y", ".3f"), Column("s", "s"))
    for x, is_log in (("words", False), (512, True), (2, False)):
        rows: tuple[dict[str, Any], ...] = ({"x": x, "y": 1.0, "s": "a"}, {"x": x, "y": 1e3, "s": "b"}, {"x": x})
        study = Study("n", "t", "how", columns, rows, Plot("x", "y", "s", is_log), baseline=0.5)
        for spec in read_specs(render_page(make_study_page([study]))).values():
            check_spec(spec)


BAD = [
    (("salient", "--percents", "x"), "--percents is 'x'"),
    (("salient", "--percents", "0"), "0 % of the channels"),
    (("salient", "--bits", "1"), "1 bits"),
    (("salient", "--calib-tokens", "10"), "10 calibration tokens"),
    (("salient", "--tokens", "100000"), "100,000 to evaluate on"),
    (("salient", "--seed", "-1"), "seed -1"),
    (("scale", "--factors", "1,0"), "factor 0"),
    (("scale", "--threads", "-1"), "-1 threads"),
    (("calib-size", "--methods", "magic"), "'magic' is not known"),
    (("calib-size", "--methods", ","), "--methods is empty"),
    (("calib-size", "--seeds", "0"), "0 seeds"),
    (("calib-size", "--sizes", ""), "--sizes is ''"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_named(model: Path, texts: Path, options: tuple[str, ...], message: str) -> None:
    error = refuse(options[0], model, "--text", texts / "prose.txt", *options[1:])
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_wrong_domains_and_models_are_named(model: Path, texts: Path, tmp_path: Path) -> None:
    assert "NAME=FILE" in str(refuse("calib-shift", model, "--domain", "prose"))
    one = f"prose={texts / 'prose.txt'}"
    assert "two domains" in str(refuse("calib-shift", model, "--domain", one))
    assert "two domains" in str(refuse("calib-shift", model, "--domain", one, "--domain", one))
    quantized = make_tiny_awq_checkpoint(tmp_path / "awq", 1, group_size=32, **SHAPE)
    assert "already quantized" in str(refuse("salient", quantized, "--text", texts / "prose.txt"))


def test_bars() -> None:
    assert make_bars([1.0, 2.0, None, 3.0], 1.0) == ["", "█" * 10, "", "█" * 20]
    steep = make_bars([16.0, 1e6, 160.0], None)
    assert len(steep[1]) == 20 and 0 < len(steep[2]) < 10  # logarithmic
    assert make_bars([None, None], 1.0) == ["", ""]
    assert make_bars([5.0], 5.0) == [""]
