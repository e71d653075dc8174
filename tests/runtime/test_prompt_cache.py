"""A second start with the same long system prompt reads only what is new."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.runtime import prompt_cache as prompt_cache_module
from edgeawq.runtime.cache_folder import find_cache_folder
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.prompt_cache import MIN_TOKENS, PromptCache
from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.session import ChatSession
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.fake_engine import build_fake_engine

SYSTEM = "Be brief and kind, and never speak of the weather in Italy. " * 8


def ask(cache: PromptCache | None, text: str = "hi", system: str = SYSTEM, **changes: object) -> ChatSession:
    """One start with one question."""
    engine = build_fake_engine(lambda question: f"You said: {question}", context_length=2000)
    session = ChatSession(Engine(**{**engine.__dict__, **changes}), system=system, prompt_cache=cache)
    assert "".join(piece.text for piece in session.reply(text, make_sampler(SamplerSettings()))) == f"You said: {text}"
    return session


def count_reused(session: ChatSession) -> int:
    assert session.last_stats is not None
    return session.last_stats.reused_tokens


def test_the_second_start_reads_only_the_question(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "new" / "folder")
    first = ask(cache, "hello")
    assert count_reused(first) == 0
    second = ask(cache, "another question")
    plain = ask(None, "another question")
    assert count_reused(second) > MIN_TOKENS
    # the end of the system prompt and the mark of the question's turn are part of what was kept
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    assert count_reused(second) == len(second.engine.tokenizer.encode(text))
    left, right = second.engine.decoder, plain.engine.decoder
    assert isinstance(left, FakeDecoder) and isinstance(right, FakeDecoder)
    assert left.context == right.context


def test_another_prompt_or_bundle_never_meets_it(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    ask(cache)
    assert count_reused(ask(cache, system=SYSTEM.replace("kind", "rude"))) == 0
    assert count_reused(ask(cache, bundle_hash="00" * 32)) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_a_short_prompt_is_not_kept(tmp_path: Path) -> None:
    ask(PromptCache(tmp_path), system="Brief.")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_removed_and_made_again(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    ask(cache)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    assert count_reused(ask(cache)) == 0
    assert count_reused(ask(cache)) > 0


def test_only_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache_module, "MAX_FILES", 2)
    cache = PromptCache(tmp_path)
    for index in range(4):
        ask(cache, system=f"{index} {SYSTEM}")
        for path in tmp_path.iterdir():  # a clock that is coarser than this loop must not matter
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert len(list(tmp_path.iterdir())) == 2
    assert count_reused(ask(cache, system=f"3 {SYSTEM}")) > 0
    assert count_reused(ask(cache, system=f"0 {SYSTEM}")) == 0


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--cache-prompt") as caught:
        ask(PromptCache(tmp_path / "file" / "folder"))
    assert "EDGEAWQ_CACHE" in caught.value.remedy


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path))
    assert find_cache_folder() == tmp_path
    monkeypatch.delenv("EDGEAWQ_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / ".cache" / "edgeawq"
