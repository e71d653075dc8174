from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeawq.checkpoints.open_model import open_model
from edgeawq.cli.eval import command
from edgeawq.cli.quantize import command as quantize_command
from edgeawq.errors import BundleError, EdgeawqError, MissingExtraError, UsageError
from packager.pack import pack_checkpoint
from tests.quantize.runs import SHAPE, write_text
from tests.runtime.native_bundles import host_profile
from tests.tiny_models import make_tiny_awq_checkpoint, make_tiny_hf_checkpoint

QUICK = ("--threads", "2", "--chunk", "128")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("texts") / "test.txt", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf_checkpoint(tmp_path_factory.mktemp("models") / "tiny", 1, **SHAPE)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "rounded"
    result = run(
        model, "-o", output, "--method", "rtn", "--group-size", 32, "--eval", text, "--json", "--threads", 2,
        use=quantize_command,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return output


def run(*arguments: object, use: Any = command, columns: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"}).invoke(
        use, [str(argument) for argument in arguments]
    )


def refuse(*arguments: object) -> EdgeawqError:
    result = run(*arguments)
    assert isinstance(result.exception, EdgeawqError), result.output
    return result.exception


def measure(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output

    def refuse_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(result.stdout, parse_constant=refuse_constant)
    assert isinstance(found, dict)
    return found


def test_figures_are_those_of_quantize(model: Path, quantized: Path, text: Path) -> None:
    wanted = json.loads((quantized / "quantization_report.json").read_text())["evaluation"]["perplexity"]
    found = measure(model, quantized, "--text", text, "--threads", 2)
    assert found["setting"] == {"n_tokens": 12288, "chunk": 1024, "stride": 1024, "kind": "plain"}
    float_result, rounded = found["results"]
    assert float_result["is_reference"] and float_result["kind"] == "float"
    assert (rounded["kind"], rounded["name"]) == ("quantized", str(quantized))
    assert float_result["score"]["perplexity"] == pytest.approx(wanted["float"], rel=1e-5)
    assert rounded["score"]["perplexity"] == pytest.approx(wanted["rtn"], rel=1e-5)
    ratio = math.log(rounded["score"]["perplexity"] / float_result["score"]["perplexity"])
    assert rounded["score"]["log_ratio"] == pytest.approx(ratio, abs=1e-5)
    assert rounded["storage"]["bits"] == 4.0
    assert rounded["storage"]["bits_per_weight"] == 4.625
    divergence = rounded["score"]["divergence"]
    assert 0 < divergence["mean"] <= divergence["largest"]
    assert 0 < divergence["top1_agreement"] < 1
    assert float_result["score"]["divergence"] is None


def test_the_table_fits_and_says_how_it_was_measured(model: Path, quantized: Path, text: Path) -> None:
    result = run(model, quantized, "--text", text, *QUICK)
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "plain: chunks of 128, each on its own" in shown
    assert "against" in shown and "rounded" in shown and "4.62" in shown
    strided = run(model, quantized, "--text", text, *QUICK, "--stride", 64).stdout
    assert "strided: windows of 128, each token after at least 64 others" in " ".join(strided.split())


def test_strided_scores_more_tokens(model: Path, text: Path) -> None:
    plain = measure(model, "--text", text, *QUICK)
    strided = measure(model, "--text", text, *QUICK, "--stride", 32)
    assert strided["setting"]["kind"] == "strided"
    assert strided["n_scored"] > plain["n_scored"]
    assert "divergence" in plain["results"][0]["score"]


def test_a_reference_that_is_not_listed_comes_first(model: Path, quantized: Path, text: Path) -> None:
    found = measure(quantized, "--reference", model, "--text", text, *QUICK)
    assert [result["name"] for result in found["results"]] == [str(model), str(quantized)]
    assert found["results"][1]["score"]["divergence"] is not None
    alone = measure(quantized, "--text", text, *QUICK)
    assert alone["results"][0]["score"]["divergence"] is None
    turned = measure(model, "--reference", quantized, "--text", text, *QUICK)
    assert [result["is_reference"] for result in turned["results"]] == [True, False]


def test_layers(model: Path, quantized: Path, text: Path) -> None:
    found = measure(model, quantized, "--text", text, *QUICK, "--layers")
    blocks = found["results"][1]["blocks"]
    assert len(blocks) == 2
    assert all(0 < error < 0.2 for block in blocks for error in (*block["layers"].values(), block["block"]))
    assert sum(found["histograms"]["weights"]["q_proj"]["counts"]) == 2 * 64 * 64
    shown = run(model, quantized, "--text", text, *QUICK, "--layers").stdout
    assert "so far" in shown and max(map(len, shown.splitlines())) <= 80


def test_other_tokens_are_not_compared(model: Path, text: Path, tmp_path: Path) -> None:
    other = make_tiny_hf_checkpoint(tmp_path / "other", 3, **SHAPE)
    config = json.loads((other / "tokenizer.json").read_text())
    config["model"]["merges"] = config["model"]["merges"][: len(config["model"]["merges"]) // 2]
    (other / "tokenizer.json").write_text(json.dumps(config))
    result = run(model, other, "--text", text, *QUICK)
    assert result.exit_code == 0, result.output
    if "other tokens" not in " ".join(result.stdout.split()):
        pytest.fail(result.stdout)
    found = measure(model, other, "--text", text, *QUICK)
    assert found["results"][1]["score"]["divergence"] is None


def test_a_page_without_its_package_is_refused_before_any_work(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vl_convert" else find(name))
    error = refuse(model, "--text", text, "--html", tmp_path / "page.html")
    assert isinstance(error, MissingExtraError)
    assert error.remedy == "pip install 'edgeawq[host]'"
    assert not list(tmp_path.iterdir())


def test_a_page(model: Path, quantized: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    page = tmp_path / "page.html"
    result = run(model, quantized, "--text", text, *QUICK, "--html", page, "--json")
    assert result.exit_code == 0, result.output
    content = page.read_text(encoding="utf-8")
    assert "Error by layer" in content and "rounded" in content
    error = refuse(model, "--text", text, "--html", tmp_path / "absent" / "page.html")
    assert isinstance(error, UsageError)


def test_tasks_need_the_harness(model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    error = refuse(model, "--text", text, "--tasks", "arc_easy")
    assert isinstance(error, MissingExtraError)
    assert error.remedy == "pip install 'edgeawq[tasks]'"


BAD_OPTIONS = [
    (("--threads", "-1"), "-1 threads"),
    (("--tokens", "-1"), "-1 tokens"),
    (("--chunk", "10"), "chunk of 10 tokens"),
    (("--stride", "2000"), "stride of 2000"),
    (("--stride", "0"), "stride of 0"),
    (("--reference", "absent/model.gguf"), "no model"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_wrong_options_are_named(model: Path, text: Path, options: tuple[str, ...], message: str) -> None:
    error = refuse(model, "--text", text, *options)
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_wrong_texts_are_named(model: Path, tmp_path: Path) -> None:
    assert "no file or folder" in str(refuse(model, "--text", tmp_path / "absent.txt"))
    short = tmp_path / "short.txt"
    short.write_text("the user")
    assert "at least 64" in str(refuse(model, "--text", short))


def test_a_damaged_bundle_is_refused_before_any_work(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    result = run(model, tmp_path, "--text", text, *QUICK)
    assert isinstance(result.exception, BundleError)
    assert "tokens/s" not in result.output


def test_awq_checkpoints_of_another_shape_have_no_layers(model: Path, text: Path, tmp_path: Path) -> None:
    other = make_tiny_awq_checkpoint(tmp_path / "wide", 4, group_size=32, **{**SHAPE, "intermediate": 128})
    error = refuse(model, other, "--text", text, *QUICK, "--layers")
    assert "intermediate_size is 128" in str(error)


def test_a_bundle_runs_in_its_own_runtime(text: Path, tmp_path: Path) -> None:
    checkpoint = make_tiny_awq_checkpoint(tmp_path / "awq", 5, group_size=32, **SHAPE)
    bundle = tmp_path / "tiny.edgeawq"
    pack_checkpoint(open_model(str(checkpoint)), host_profile(), bundle)
    arguments = (checkpoint, bundle, "--reference", checkpoint, "--text", text, "--tokens", 400, *QUICK)
    found = measure(*arguments)
    source, packed = found["results"]
    assert (source["kind"], packed["kind"]) == ("quantized", "bundle")
    assert source["storage"]["bits_per_weight"] == 4.625
    assert 4.625 <= packed["storage"]["bits_per_weight"] < 5.5  # a layout may pad
    # int8 activations and another order of sums: close to the checkpoint, not equal.
    assert packed["score"]["log_ratio"] == pytest.approx(0.0, abs=0.2)
    assert 0 < packed["score"]["divergence"]["mean"] < 0.2
    assert packed["score"]["divergence"]["top1_agreement"] > 0.7
    strided = measure(*arguments, "--stride", 32)["results"][1]
    assert strided["score"]["n_tokens"] == 399
    assert "is a bundle" in str(refuse(checkpoint, "--reference", bundle, "--text", text, *QUICK))
    assert "do not fit into the context" in str(refuse(bundle, "--text", text, "--chunk", 4096))
    alone = measure(bundle, "--text", text, "--tokens", 400, *QUICK)["results"]
    assert alone[0]["score"]["perplexity"] == pytest.approx(packed["score"]["perplexity"], rel=1e-3)
