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
from edgeawq.errors import EdgeawqError, UsageError
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


def test_a_damaged_bundle_is_found_when_asked(run: Run, opened: list[dict[str, Any]], tmp_path: Path) -> None:
    pack_for_host(make_tiny_model(seed=3), tmp_path / "tiny.edgeawq")
    for file in (tmp_path / "tiny.edgeawq").iterdir():
        file.rename(tmp_path / file.name)
    assert run("--prompt", "hi", "--verify").return_value == 0
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[len(weights) // 2] ^= 0x10
    (tmp_path / "weights.bin").write_bytes(weights)
    assert run("--prompt", "hi").return_value == 0
    error = run("--prompt", "hi", "--verify").exception
    assert isinstance(error, EdgeawqError) and "weights.bin is damaged" in error.what
    assert len(opened) == 2


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


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_speculation_gives_the_same_text_and_counts_its_drafts(run: Run, raw: list[str]) -> None:
    text = "one two three one two three one two three"
    if raw:
        text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    prompt = ["--prompt", text, "--json", "--max-tokens", "30", *raw]
    plain, fast = (json.loads(run(*prompt, "--speculate", kind).stdout) for kind in ("off", "ngram"))
    assert fast["tokens"] == plain["tokens"]
    assert plain["drafted_tokens"] == plain["accepted_tokens"] == 0
    assert fast["drafted_tokens"] >= fast["accepted_tokens"] > 0
    stats = run(*prompt[:2], *raw, "--stats", "--speculate", "ngram").stderr
    assert "drafted tokens accepted" in stats


def test_a_session_goes_on_in_the_next_run(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    first = run("--prompt", "one", "--session", str(path), "--json")
    assert json.loads(first.stdout)["reused_tokens"] == 0 and path.is_file()
    second = run("--prompt", "two", "--session", str(path), "--json")
    document = json.loads(second.stdout)
    assert document["text"] == "You said: two"
    assert document["reused_tokens"] > json.loads(first.stdout)["prompt_tokens"]
    assert "Loaded 2 messages" in second.stderr
    messages = tmp_path / "talk.json"
    assert run("--prompt", "one", "--session", str(messages)).stdout == "You said: one\n"
    assert json.loads(messages.read_text())["messages"][1]["content"] == "You said: one"


def test_a_session_file_that_is_none_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    result = run("--prompt", "one", "--session", str(path))
    assert isinstance(result.exception, UsageError)
    assert path.read_text() == "my notes"


def test_a_kept_prompt_is_not_read_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
    arguments = ["--prompt", "hi", "--json", "--system", "Be brief, be kind. " * 10]
    assert json.loads(run(*arguments).stdout)["reused_tokens"] == 0
    assert not (tmp_path / "cache").exists()
    assert json.loads(run(*arguments, "--cache-prompt").stdout)["reused_tokens"] == 0
    assert json.loads(run(*arguments, "--cache-prompt").stdout)["reused_tokens"] > 50


def test_a_full_context_can_drop_the_oldest_part(run: Run) -> None:
    arguments = ["--prompt", "a b c d e f g h", "--context-length", "44"]
    result = run(*arguments, "--on-full", "shift", "--max-tokens", "60")
    assert "oldest part of the text was dropped" in result.stderr
    assert "is full" not in result.stderr


@pytest.mark.parametrize("option", [["--system", "x"], ["--session", "x"], ["--cache-prompt"]])
def test_plain_text_has_no_conversation(run: Run, option: list[str]) -> None:
    result = run("--prompt", "hi", "--raw", *option)
    assert isinstance(result.exception, UsageError) and option[0] in result.exception.what


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
    run("--prompt", "hi", "--threads", "3", "--context-length", "99", "--activations", "float", "--kv-bits", "8")
    given = {"bundle": tmp_path, "n_threads": 3, "context_length": 99, "activations": "float", "kv_bits": 8}
    assert opened == [given | {"give_way": True}]
    run("--prompt", "hi")
    usual = {"bundle": tmp_path, "n_threads": 0, "context_length": None, "activations": "int8", "kv_bits": 0}
    assert opened[1] == usual | {"give_way": True}


def test_threads_that_were_measured_once_are_used_from_then_on(
    run: Run, opened: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeawq.runtime import thread_choice

    placed: list[frozenset[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: placed.append(frozenset(cpus)))
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "manifest.json").write_text("{}")
    speeds = {4: 50.0, 3: 80.0, 2: 81.0, 1: 40.0}
    monkeypatch.setattr(
        thread_choice, "measure_threads", lambda bundle, **options: thread_choice.ThreadChoice(2, speeds)
    )
    result = run("--prompt", "hi", "--threads", "auto")
    assert "2 threads are fastest" in result.stderr and "4: 50.0" in result.stderr
    run("--prompt", "hi")
    run("--prompt", "hi", "--threads", "3")
    run("--prompt", "hi", "--activations", "float")
    assert [entry["n_threads"] for entry in opened] == [2, 2, 3, 0]
    run("--prompt", "hi", "--cpu-affinity", "1-2,3")
    assert frozenset({1, 2, 3}) in placed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--threads", "many"], "neither a number nor auto"),
        (["--threads", "-1"], "neither a number nor auto"),
        (["--cpu-affinity", "a"], "no list of CPUs"),
        (["--cpu-affinity", "4095"], "may not use CPU 4095"),
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
