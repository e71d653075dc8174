from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeawq.checkpoints.open_model import open_model
from edgeawq.cli.eval import command as eval_command
from edgeawq.cli.quantize import command
from edgeawq.cli.quantize_table import short
from edgeawq.errors import EdgeawqError, QuantizationError, UsageError
from edgeawq.quantize import block, run_output
from edgeawq.quantize.clip_search import ClippedGrid, search_clip
from tests.quantize.runs import SHAPE, read_folder, write_text
from tests.tiny_models import make_tiny_awq_checkpoint, make_tiny_hf_checkpoint

QUICK = ("--group-size", "32", "--calib-tokens", "256", "--seqlen", "64", "--threads", "2")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_text(folder / "calibration.txt", 1)
    write_text(folder / "test.txt", 2)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf_checkpoint(tmp_path_factory.mktemp("models") / "tiny", 1, **SHAPE)


def run(*arguments: object, use: Any = command) -> Result:
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(use, [str(argument) for argument in arguments])


def refuse(*arguments: object, use: Any = command) -> EdgeawqError:
    """The error of a call that must end in one of edgeawq's own, with a remedy or a plain reason."""
    result = run(*arguments, use=use)
    assert isinstance(result.exception, EdgeawqError), result.output
    assert str(result.exception)
    return result.exception


def test_table_and_summary(tmp_path: Path, model: Path, texts: Path) -> None:
    output = tmp_path / "out"
    result = run(
        model, "-o", output, "--calib", texts / "calibration.txt", "--eval", texts / "test.txt",
        "--eval-tokens", 300, *QUICK,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert "RTN → " in shown
    for column in ("block", "q", "k", "v", "o", "gate", "up", "down"):
        assert re.search(rf"\b{column}\b", shown), column
    assert len(re.findall(r"→", shown)) >= 1 + 2 * 8  # two blocks: the block itself and seven layers
    assert "4.625 in the blocks" in shown
    assert "calibration.txt" in shown
    assert re.search(r"float \d+\.\d+, rtn \d+\.\d+, awq \d+\.\d+", shown)
    assert f"edgeawq pack {output}" in re.sub(r"\s+", " ", shown)
    assert open_model(str(output)).quantization is not None


def test_json_is_the_report(tmp_path: Path, model: Path, texts: Path) -> None:
    output = tmp_path / "out"
    result = run(model, "-o", output, "--calib", texts, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    written = json.loads((output / "quantization_report.json").read_text())
    assert set(found) == set(written)
    assert found["settings"] == written["settings"]
    assert found["calibration"]["n_documents"] == 2
    assert len(found["blocks"]) == 2
    for mine, theirs in zip(found["blocks"], written["blocks"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_rtn_has_no_table_and_no_calibration(tmp_path: Path, model: Path) -> None:
    result = run(model, "-o", tmp_path / "out", "--method", "rtn", "--head-bits", 16, "--group-size", 128)
    assert result.exit_code == 0, result.output
    assert "RTN → " not in result.stdout
    assert "note: group size 32 instead of 128" in result.stdout
    assert "float16" in result.stdout
    assert "rtn, 4 bits, groups of 32" in result.stdout


def test_bits_of_layers_that_differ_are_shown(tmp_path: Path, model: Path, texts: Path) -> None:
    output = tmp_path / "out"
    result = run(
        model, "-o", output, "--calib", texts, "--method", "awq+gptq", "--bits", 3, "--bits-for", "down_proj=8", *QUICK
    )
    assert result.exit_code == 0, result.output
    assert "RTN → awq+gptq" in result.stdout
    assert len(re.findall("8 bits", result.stdout)) >= 2
    assert "down_proj: 8" in result.stdout
    written = open_model(str(output)).quantization
    assert written is not None
    assert written.all_bits == (3, 8)


def test_a_checkpoint_for_analysis_goes_to_eval(tmp_path: Path, model: Path, texts: Path) -> None:
    output = tmp_path / "out"
    options = ("--method", "mixed", "--bits", 3, "--keep-percent", 3, "--keep-by", "weight-norm")
    result = run(model, "-o", output, "--calib", texts / "calibration.txt", *options, *QUICK)
    assert result.exit_code == 0, result.output
    assert re.search(r"in float16 +3 % of the input channels, by weight norm", result.stdout)
    assert "edgeawq eval" in result.stdout and "edgeawq pack" not in result.stdout
    shown = run(output, model, "--text", texts / "test.txt", "--tokens", 300, "--json", use=eval_command)
    assert shown.exit_code == 0, shown.output
    found = {entry["kind"]: entry for entry in json.loads(shown.stdout)["results"]}
    assert found["float"]["is_reference"] and not found["analysis"]["is_reference"]
    assert found["analysis"]["score"]["divergence"]["mean"] > 0
    assert 3.6 < found["analysis"]["storage"]["bits_per_weight"] < 4.5


def test_reverted_blocks_are_shown(tmp_path: Path, model: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def search_badly(*arguments: Any) -> ClippedGrid:
        grid = search_clip(*arguments)
        return ClippedGrid(grid.scales * 4, grid.zeros, grid.high_ratio, grid.low_ratio)

    monkeypatch.setattr(block, "search_clip", search_badly)
    result = run(model, "-o", tmp_path / "out", "--calib", texts, *QUICK)
    assert result.exit_code == 0, result.output
    assert "blocks 0, 1: awq did not lower the loss" in result.stdout
    assert len(re.findall(r"\breverted\b", result.stdout)) == 2


@pytest.mark.parametrize("use", [command, eval_command], ids=["quantize", "eval"])
def test_help_has_an_example(use: Any) -> None:
    result = run("--help", use=use)
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert re.search(rf"edgeawq {use.name} \S+", result.stdout)
    assert "--json" in result.stdout


BAD_OPTIONS = [
    (("--method", "squeeze"), "'squeeze' is not known"),
    (("--bits", 5), "5 bits per weight"),
    (("--bits-for", "down_proj"), "not PATTERN=BITS"),
    (("--bits-for", "nothing_proj=4"), "no layer's name holds"),
    (("--bits-for", "down_proj=7"), "7 bits per weight"),
    (("--group-size", "large"), "'large' is no group size"),
    (("--act-order",), "no meaning with --method awq"),
    (("--rounding-steps", 0), "0 rounding steps"),
    (("--activation-memory", -1), "-1.0 GiB"),
    (("--method", "rtn", "--target-bpw", 3), "--target-bpw has no meaning"),
    (("--method", "mixed", "--target-bpw", 3), "--target-bpw has no meaning"),
    (("--keep-percent", 1), "--keep-percent has no meaning with --method awq"),
    (("--keep-by", "random"), "--keep-by has no meaning with --method awq"),
    (("--method", "mixed", "--keep-percent", 101), "101.0 % of the channels"),
    (("--method", "mixed", "--keep-by", "size"), "chosen by 'size'"),
    (("--head-bits", 7), "7 bits for embedding"),
    (("--group-size", 16), "group size of 16"),
    (("--seqlen", 2), "2 tokens are too short"),
    (("--calib-tokens", 10), "10 calibration tokens"),
    (("--seed", -4), "-4"),
    (("--threads", -1), "-1 threads"),
    (("--method", "rtn", "--calib", "x.txt"), "--calib has no meaning"),
    (("--calib", "absent.txt"), "no file or folder absent.txt"),
    (("--eval", "absent.txt"), "no file or folder absent.txt"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_wrong_options_are_named_and_leave_nothing(
    tmp_path: Path, model: Path, options: tuple[object, ...], message: str
) -> None:
    error = refuse(model, "-o", tmp_path / "out", *options)
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert error.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", [command, eval_command], ids=["quantize", "eval"])
def test_a_missing_model_leaves_no_blank_line(tmp_path: Path, use: Any) -> None:
    option = ("-o", tmp_path / "out") if use is command else ("--text", tmp_path / "text.txt")
    assert run(tmp_path / "absent", *option, use=use).output == ""


@pytest.mark.parametrize("option", ["--method", "--bits", "--group-size", "--head-bits", "--seqlen", "--calib-tokens"])
def test_wrong_values_come_with_a_remedy(tmp_path: Path, model: Path, option: str) -> None:
    assert refuse(model, "-o", tmp_path / "out", option, "1").remedy


def test_an_existing_output_is_kept(tmp_path: Path, model: Path) -> None:
    output = tmp_path / "out"
    rtn = ("--method", "rtn", "-o", output)
    assert run(model, *rtn).exit_code == 0
    before = read_folder(output)
    error = refuse(model, *rtn, "--head-bits", 4)
    assert isinstance(error, UsageError)
    assert "already holds a checkpoint" in str(error)
    assert error.remedy
    assert read_folder(output) == before
    assert run(model, *rtn, "--head-bits", 4, "--overwrite").exit_code == 0
    assert read_folder(output) != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    error = refuse(model, "--method", "rtn", "-o", tmp_path / "mine", "--overwrite")
    assert "not written by edgeawq" in str(error)
    assert read_folder(tmp_path / "mine") == {"letter.txt": b"dear"}


def test_models_that_do_not_do(tmp_path: Path) -> None:
    refuse(tmp_path / "absent", "-o", tmp_path / "out")
    quantized = make_tiny_awq_checkpoint(tmp_path / "awq", group_size=32, **SHAPE)
    assert "already quantized" in str(refuse(quantized, "-o", tmp_path / "out"))
    narrow = {"hidden": 48, "intermediate": 96, "n_heads": 3, "n_kv_heads": 3, "head_dim": 16}
    error = refuse(make_tiny_hf_checkpoint(tmp_path / "narrow", **narrow), "-o", tmp_path / "out")
    assert isinstance(error, QuantizationError)
    assert "width 48" in str(error)
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, model: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise QuantizationError("the disk is on fire", remedy="put it out")

    monkeypatch.setattr(run_output, "write_awq_checkpoint", fail)
    error = refuse(model, "-o", tmp_path / "deep" / "out", "--calib", texts, *QUICK)
    assert error.remedy == "put it out"
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, ".00"), (0.614, ".61"), (0.996, "1.0"), (3.44, "3.4"), (9.96, "10"), (12.3, "12"), (120.4, "120")],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert short(value) == text
