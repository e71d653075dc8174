"""`edgeawq run` around a fake engine, and once around a real bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeawq.cli.run import command
from edgeawq.errors import UsageError
from edgeawq.runtime import engine as engine_module
from edgeawq.runtime.engine import Engine
from packager.bundle import add_golden
from tests.runtime.fake_engine import build_fake_engine
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model

ROOT = Path(__file__).parents[2]
Run = Callable[..., Result]


@pytest.fixture
def opened() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[dict[str, Any]]) -> Run:
    def open_fake(bundle: Path, **options: Any) -> Engine:
        opened.append({"bundle": bundle, **options})
        return build_fake_engine(
            lambda question: f"You said: {question}", context_length=options["context_length"] or 512
        )

    monkeypatch.setattr(engine_module, "open_engine", open_fake)

    def invoke(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(command, [str(tmp_path), *arguments], standalone_mode=False, **options)

    return invoke


def test_the_answer_goes_to_standard_output(run: Run) -> None:
    result = run("--prompt", "Grüße 🙂")
    assert (result.return_value, result.stdout, result.stderr) == (0, "You said: Grüße 🙂\n", "")


def test_the_prompt_may_come_from_a_pipe(run: Run) -> None:
    assert run(input="a question\n").stdout == "You said: a question\n"
    assert run("--prompt", "-", input="two\nlines\n").stdout == "You said: two\nlines\n"
    assert isinstance(run(input="").exception, UsageError)


def test_json(run: Run) -> None:
    result = run("--prompt", "hi", "--json")
    document = json.loads(result.stdout)
    assert document["text"] == "You said: hi"
    assert document["finish_reason"] == "stop"
    assert document["generated_tokens"] == len(document["tokens"])
    assert document["prompt_tokens"] > 0
    assert {"prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_s"} <= set(document)


def test_stats_go_to_standard_error(run: Run) -> None:
    result = run("--prompt", "hi", "--stats")
    assert result.stdout == "You said: hi\n"
    assert "tokens/s" in result.stderr and "first token after" in result.stderr


def test_limits(run: Run) -> None:
    assert json.loads(run("--prompt", "hi", "--json", "--max-tokens", "2").stdout)["finish_reason"] == "length"
    assert run("--prompt", "one STOP two", "--stop", "STOP").stdout == "You said: one \n"
    result = run("--prompt", "a b c d e f g h", "--context-length", "44")
    assert "the context of 44 tokens is full" in result.stderr
    assert result.return_value == 0


def test_system_and_raw(run: Run) -> None:
    assert run("--prompt", "hi", "--system", "Be brief.").stdout == "You said: hi\n"
    assert isinstance(run("--prompt", "hi", "--raw", "--system", "x").exception, UsageError)
    assert run("--prompt", "Once", "--raw", "--max-tokens", "3").return_value == 0


def test_engine_options_arrive(run: Run, opened: list[dict[str, Any]], tmp_path: Path) -> None:
    run("--prompt", "hi", "--threads", "3", "--context-length", "99", "--activations", "float")
    assert opened == [{"bundle": tmp_path, "n_threads": 3, "context_length": 99, "activations": "float"}]
    run("--prompt", "hi")
    assert opened[1] == {"bundle": tmp_path, "n_threads": 0, "context_length": None, "activations": "int8"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-p", "2"], "top_p is 2"),
        (["--max-tokens", "0"], "0 tokens"),
        (["--stop", ""], "stop string is empty"),
        (["--prompt", ""], "no prompt"),
    ],
)
def test_options_that_make_no_sense(run: Run, arguments: list[str], message: str) -> None:
    result = run("--prompt", "hi", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in result.exception.what and result.exception.remedy


def test_no_such_bundle(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "absent"), "--prompt", "x"], standalone_mode=False)
    assert isinstance(result.exception, UsageError) and "absent" in result.exception.what


def test_a_real_bundle_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The command that a device's health check runs: exit code 0 when the tokens come out, 1 when not."""
    from edgeawq.runtime.golden import record_golden

    bundle = pack_for_host(make_tiny_model(seed=3), tmp_path / "tiny.edgeawq")
    golden = record_golden(bundle, 8)
    add_golden(bundle, golden)

    def start(*arguments: str, bundle: Path = bundle) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgeawq", "run", str(bundle), *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            check=False,
        )

    good = start("--golden", "--json")
    assert good.returncode == 0, good.stderr
    document = json.loads(good.stdout)
    assert document["ok"] and document["tokens"] == document["expected"] == golden["expected_tokens"]
    assert document["decode_tokens_per_s"] >= 0
    assert start("--golden").stdout.startswith("ok: ")

    wrong = [(token + 1) % 300 for token in golden["expected_tokens"]]
    other = pack_for_host(make_tiny_model(seed=3), tmp_path / "other.edgeawq")
    add_golden(other, {**golden, "expected_tokens": wrong})
    bad = start("--golden", "--json", bundle=other)
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["ok"] is False

    empty = start("--prompt", "-")
    assert empty.returncode == 2
    assert "standard input is empty" in empty.stderr and "Traceback" not in empty.stderr
