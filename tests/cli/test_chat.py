"""`edgeawq chat`: which target is meant, what a pipe does, what reaches a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeawq.cli.chat import build_remote_arguments, command, find_bundle
from edgeawq.deploy import remote_chat
from edgeawq.errors import UsageError
from edgeawq.runtime import engine as engine_module
from edgeawq.runtime.engine import Engine
from tests.runtime.fake_engine import build_fake_engine

Chat = Callable[..., Result]
INVENTORY = '[devices.pi4]\nhost = "raspberrypi.local"\n[devices.orin]\nhost = "10.0.0.2"\n'


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chat:
    """A folder with an inventory and a bundle, and the command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgeawq.toml").write_text(INVENTORY)
    make_bundle(tmp_path / "small.edgeawq")

    def open_fake(bundle: Path, **options: Any) -> Engine:
        return build_fake_engine(
            lambda question: f"You said: {question}", context_length=options["context_length"] or 512
        )

    monkeypatch.setattr(engine_module, "open_engine", open_fake)

    def invoke(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(command, list(arguments), standalone_mode=False, **options)

    return invoke


def make_bundle(folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")


def test_a_pipe_is_one_question(chat: Chat) -> None:
    result = chat("small.edgeawq", input="hello\nyou\n")
    assert (result.return_value, result.stdout, result.stderr) == (0, "You said: hello\nyou\n", "")


def test_prompt_gives_one_answer(chat: Chat) -> None:
    result = chat("small.edgeawq", "--prompt", "hi", "--temperature", "0.5", "--seed", "1")
    assert result.stdout == "You said: hi\n"
    assert "cut off" in chat("small.edgeawq", "--prompt", "a b c", "--max-tokens", "2").stderr
    assert "context is full" in chat("small.edgeawq", "--prompt", "a b c d", "--context-length", "34").stderr
    assert isinstance(chat("small.edgeawq", "--prompt", " ").exception, UsageError)
    assert isinstance(chat("small.edgeawq", input="").exception, UsageError)


def test_a_device_gets_the_same_options(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], Any]] = []

    def run_remote(name: str, argv: list[str], *, inventory: str | None = None) -> int:
        calls.append((name, argv, inventory))
        return 7

    monkeypatch.setattr(remote_chat, "run_remote_chat", run_remote)
    result = chat("pi4", "--prompt", "-x y", "--top-k", "40", "--max-tokens", "9", "--threads", "2")
    assert result.return_value == 7
    assert calls == [("pi4", ["--prompt=-x y", "--max-tokens=9", "--top-k=40", "--threads=2"], None)]
    assert chat("localhost").return_value == 7


def test_remote_arguments_are_understood_by_this_very_command() -> None:
    options: dict[str, Any] = {parameter.name or "": None for parameter in command.params}
    options.update(prompt="a 'quoted' \"one\"", temperature=0.25, context_length=1024, activations="float", seed=0)
    options.update(session="a b", on_full="shift", speculate="ngram", cache_prompt=True, jit=True, verify=True)
    options.update(threads="auto", cpu_affinity="0-3")
    context = command.make_context("chat", ["target", *build_remote_arguments(options)])
    assert {**options, "target": "target"} == context.params


def test_a_bundle_wins_over_a_device_of_the_same_name(chat: Chat, tmp_path: Path) -> None:
    assert find_bundle("pi4") is None
    make_bundle(tmp_path / "pi4")
    assert find_bundle("pi4") == Path("pi4")


def test_a_folder_that_is_no_bundle_does_not_hide_a_device(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "orin").mkdir()
    assert find_bundle("orin") is None


@pytest.mark.parametrize("target", ["pi5", "./missing.edgeawq", "/absent"])
def test_an_unknown_target_lists_what_it_could_mean(chat: Chat, target: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_bundle(target)
    assert target in caught.value.what
    assert "orin" in caught.value.remedy and "pi4" in caught.value.remedy
    assert "small.edgeawq" in caught.value.remedy


def test_a_folder_without_a_manifest_says_so(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        find_bundle("weights")


def test_a_session_goes_on_in_the_next_chat(chat: Chat, tmp_path: Path) -> None:
    arguments = ["small.edgeawq", "--session", "talk"]
    assert chat(*arguments, "--prompt", "one").stdout == "You said: one\n"
    result = chat(*arguments, input="two\n")
    assert result.stdout == "You said: two\n" and "Loaded 2 messages" in result.stderr
    assert "Loaded 4 messages" in chat(*arguments, "--prompt", "three").stderr
    assert {path.name for path in tmp_path.iterdir()} == {"edgeawq.toml", "small.edgeawq", "talk"}


def test_the_system_prompt_on_the_command_line_wins(chat: Chat) -> None:
    from edgeawq.runtime.session_file import read_chat

    chat("small.edgeawq", "--session", "talk.json", "--prompt", "one", "--system", "Be brief.")
    assert read_chat(Path("talk.json")).system == "Be brief."
    chat("small.edgeawq", "--session", "talk.json", "--prompt", "two")
    assert read_chat(Path("talk.json")).system == "Be brief."
    chat("small.edgeawq", "--session", "talk.json", "--prompt", "three", "--system", "Be kind.")
    assert read_chat(Path("talk.json")).system == "Be kind."
