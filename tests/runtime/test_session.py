"""A conversation reads only what is new, and survives errors, stops and a restart."""

from __future__ import annotations

import json
import stat
import zlib
from pathlib import Path

import pytest

from edgeawq.errors import ContextFullError, GenerationError, UsageError
from edgeawq.runtime.cache_file import read_header, write_cache
from edgeawq.runtime.chat_template import ChatTemplate, Message
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.session import ChatSession, count_common_prefix
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.fake_engine import build_fake_engine

GREEDY = make_sampler(SamplerSettings())


def echo(question: str) -> str:
    return f"You said: {question}"


def start(**options: object) -> tuple[ChatSession, FakeDecoder]:
    engine = build_fake_engine(echo, **options)  # type: ignore[arg-type]
    assert isinstance(engine.decoder, FakeDecoder)
    return ChatSession(engine), engine.decoder


def ask(session: ChatSession, text: str, **options: object) -> str:
    return "".join(piece.text for piece in session.reply(text, GREEDY, **options))  # type: ignore[arg-type]


def test_only_new_tokens_are_read_in_the_second_turn() -> None:
    session, decoder = start()
    assert ask(session, "one two three") == "You said: one two three"
    before = decoder.position
    assert ask(session, "four") == "You said: four"
    stats = session.last_stats
    assert stats is not None
    assert stats.reused_tokens == before
    fresh = session.engine.tokenizer.encode("<|im_end|>\n<|im_start|>user\nfour<|im_end|>\n<|im_start|>assistant\n")
    assert stats.prompt_tokens == len(fresh)
    # What the cache holds is the very conversation.
    text = session.engine.template.render(session.messages, add_generation_prompt=False)
    assert text.startswith(session.engine.tokenizer.decode(decoder.context, skip_special=False))


def test_the_models_own_tokens_are_reused_although_the_text_would_be_cut_differently() -> None:
    engine = build_fake_engine(echo)
    tokenizer = engine.tokenizer
    letters = [tokenizer.token_id(letter) for letter in "Thecapitlofrn"]

    def spell(context: tuple[int, ...]) -> int:
        return letters[zlib.crc32(repr(context).encode()) % len(letters)] or 0

    decoder = FakeDecoder(tokenizer.vocab_size, choose_next=spell)
    session = ChatSession(Engine(**{**engine.__dict__, "decoder": decoder}))
    answer = ask(session, "spell", max_new_tokens=60)
    assert len(tokenizer.encode(answer)) < 60  # the tokenizer would have taken longer pieces
    for question in ("again", "and again"):
        before = decoder.position
        ask(session, question, max_new_tokens=20)
        stats = session.last_stats
        assert stats is not None and stats.reused_tokens == before


def test_reset_keeps_the_system_prompt_and_its_cache() -> None:
    session, decoder = start()
    session.set_system("Be brief, " * 5)
    ask(session, "hello")
    session.reset()
    assert session.messages == ()
    ask(session, "hello again")
    stats = session.last_stats
    assert stats is not None and stats.reused_tokens > 10
    assert session.engine.tokenizer.decode(decoder.context).startswith("system\nBe brief")


def test_another_system_prompt_reads_everything_again() -> None:
    session, decoder = start()
    session.set_system("A")
    ask(session, "hello")
    session.set_system("B")
    ask(session, "you")
    assert "B" in session.engine.tokenizer.decode(decoder.context)
    assert session.messages[0] == Message("user", "hello")
    session.set_system("")
    assert session.system is None


def test_a_cancelled_answer_stays_in_the_conversation() -> None:
    session, decoder = start()
    calls = iter([False] * 6 + [True] * 100)
    text = ask(session, "one two three four five", cancelled=lambda: next(calls))
    assert session.messages == (Message("user", "one two three four five"), Message("assistant", text))
    assert "You said: one two three four five".startswith(text)
    assert ask(session, "next") == "You said: next"


def test_a_question_without_an_answer_is_taken_back() -> None:
    session, decoder = start()
    ask(session, "one")
    list(session.reply("two " * 100, GREEDY, cancelled=lambda: True))
    assert [message.content for message in session.messages] == ["one", "You said: one"]
    assert ask(session, "three") == "You said: three"


def test_a_reader_that_goes_away_leaves_a_sound_conversation() -> None:
    session, decoder = start()
    answer = session.reply("one two three four", GREEDY)
    next(answer), next(answer), next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert len(session.messages) == 2
    assert ask(session, "next") == "You said: next"


def test_a_full_context_says_so_and_reset_helps() -> None:
    session, decoder = start(context_length=60)
    ask(session, "one")
    with pytest.raises(ContextFullError, match="room for 60"):
        ask(session, "many words " * 20)
    assert len(session.messages) == 2
    session.reset()
    assert ask(session, "one") == "You said: one"


def test_a_template_that_refuses_takes_the_question_back() -> None:
    engine = build_fake_engine(echo)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + str(
        engine.template.source
    )
    session = ChatSession(Engine(**{**engine.__dict__, "template": ChatTemplate(refusing)}), system="Be brief.")
    with pytest.raises(GenerationError, match="no system"):
        ask(session, "hi")
    assert session.messages == ()
    session.set_system(None)
    assert ask(session, "hi") == "You said: hi"


def test_a_model_without_a_template_stops_before_the_persons_next_turn() -> None:
    def write_on(context: tuple[int, ...]) -> int:
        wanted = engine.tokenizer.encode(" Paris.\n\nUser: and Italy?")
        return wanted[min(len(context) - n_prompt, len(wanted) - 1)]

    engine = build_fake_engine(echo)
    n_prompt = len(engine.tokenizer.encode("User: France?\n\nAssistant:"))
    decoder = FakeDecoder(engine.tokenizer.vocab_size, choose_next=write_on)
    session = ChatSession(Engine(**{**engine.__dict__, "template": ChatTemplate(None), "decoder": decoder}))
    assert ask(session, "France?") == " Paris.\n"


def test_save_and_load(tmp_path: Path) -> None:
    session, _ = start()
    session.set_system("Sys")
    ask(session, "Grüße 🙂")
    path = tmp_path / "chat.json"
    session.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]
    other, _ = start()
    saved = other.load(path)
    assert saved.chat.model == "tiny-fake"
    assert (other.system, other.messages) == (session.system, session.messages)
    assert ask(other, "next") == "You said: next"


def test_saving_over_a_file_replaces_it_whole(tmp_path: Path) -> None:
    session, _ = start()
    ask(session, "hi")
    path = tmp_path / "chat.json"
    path.write_text("x" * 100_000)
    session.save(path)
    assert json.loads(path.read_text())["format"] == "edgeawq-chat"


@pytest.mark.parametrize("where", [".", "no/such/folder/chat.json", "nul\0byte"])
def test_saving_where_one_cannot(tmp_path: Path, where: str) -> None:
    session, _ = start()
    ask(session, "hi")
    with pytest.raises(UsageError, match="cannot save"):
        session.save(tmp_path / where)
    assert list(tmp_path.iterdir()) == []


GOOD = {
    "format": "edgeawq-chat",
    "format_version": 1,
    "model": "m",
    "system": None,
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "no saved conversation"),
        ({"format_version": 2}, "format version 2"),
        ({"model": 1}, "no text"),
        ({"system": 1}, "no text"),
        ({"messages": {}}, "no list"),
        ({"messages": GOOD["messages"][:1]}, "no answer"),  # type: ignore[index]
        ({"messages": [{"role": "assistant", "content": "x"}]}, "message 1"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1"),
        ({"messages": ["x"]}, "message 1"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_002}, "at most 10000"),
    ],
)
def test_a_wrong_file_is_refused_and_changes_nothing(tmp_path: Path, change: dict[str, object], message: str) -> None:
    session, _ = start()
    ask(session, "hi")
    before = session.messages
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(UsageError, match=message):
        session.load(path)
    assert session.messages == before
    path.write_text(json.dumps(GOOD))
    session.load(path)
    assert session.messages[1] == Message("assistant", "b")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    session, _ = start()
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        session.load(path)


def test_absent_and_special_files_are_refused(tmp_path: Path) -> None:
    session, _ = start()
    for path in (tmp_path / "absent", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="no file"):
            session.load(path)


def test_common_prefix() -> None:
    assert count_common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert count_common_prefix([], [1]) == 0
    assert count_common_prefix([1, 2], [1, 2]) == 2


# --- sessions with their KV cache -------------------------------------------------------------------------------------


def test_a_saved_session_reads_nothing_again(tmp_path: Path) -> None:
    session, decoder = start()
    session.set_system("Be brief.")
    ask(session, "one two three")
    ask(session, "Grüße 🙂")
    path = tmp_path / "talk"
    session.save(path)
    other, fresh = start()
    loaded = other.load(path)
    assert (loaded.n_cached, loaded.note) == (decoder.position, "")
    assert fresh.context == decoder.context and fresh.calls == []
    assert (other.system, other.messages) == (session.system, session.messages)
    assert ask(other, "next") == ask(session, "next") == "You said: next"
    assert other.last_stats is not None and session.last_stats is not None
    assert other.last_stats.reused_tokens == session.last_stats.reused_tokens > 50
    assert other.last_stats.prompt_tokens == session.last_stats.prompt_tokens


def test_the_models_own_tokens_survive_saving(tmp_path: Path) -> None:
    """Encoding the answer again would cut it differently, and then most of the cache would be of no use."""
    engine = build_fake_engine(echo)
    tokenizer = engine.tokenizer
    letters = [tokenizer.token_id(letter) or 0 for letter in "Thecapitlofrn"]

    def build() -> ChatSession:
        decoder = FakeDecoder(
            tokenizer.vocab_size, choose_next=lambda context: letters[zlib.crc32(repr(context).encode()) % len(letters)]
        )
        return ChatSession(Engine(**{**engine.__dict__, "decoder": decoder}))

    session = build()
    ask(session, "spell", max_new_tokens=60)
    session.save(tmp_path / "talk")
    other = build()
    other.load(tmp_path / "talk")
    before = other.context_used
    ask(other, "again", max_new_tokens=5)
    assert other.last_stats is not None and other.last_stats.reused_tokens == before


def test_a_cache_of_another_bundle_is_read_again_and_said_so(tmp_path: Path) -> None:
    session, _ = start()
    ask(session, "hi")
    session.save(tmp_path / "talk")
    engine = build_fake_engine(echo)
    for changes, reason in (
        ({"bundle_hash": "00" * 32}, "another bundle"),
        ({"decoder": FakeDecoder(engine.tokenizer.vocab_size, context_length=10)}, "room for 10"),
    ):
        other = ChatSession(Engine(**{**engine.__dict__, **changes}))
        loaded = other.load(tmp_path / "talk")
        assert loaded.n_cached == 0 and reason in loaded.note and "read again" in loaded.note
        assert other.messages == session.messages and other.context_used == 0


def test_a_damaged_session_changes_nothing(tmp_path: Path) -> None:
    session, _ = start()
    ask(session, "hi")
    path = tmp_path / "talk"
    session.save(path)
    data = bytearray(path.read_bytes())
    other, decoder = start()
    ask(other, "mine")
    before, context = other.messages, list(decoder.context)
    for index in (20, len(data) // 2, len(data) - 1):
        path.write_bytes(bytes(data[:index]) + bytes([data[index] ^ 1]) + bytes(data[index + 1 :]))
        with pytest.raises(UsageError):
            other.load(path)
        assert other.messages == before and decoder.context == context
    assert ask(other, "next") == "You said: next"


@pytest.mark.parametrize(
    "change",
    [
        {"chat": None},
        {"chat": {"format": "edgeawq-chat"}},
        {"dropped": 1},
        {"dropped": 4},
        {"dropped": -2},
        {"dropped": None},
        {"known_text": 1},
        {"known_tokens": "a"},
        {"known_tokens": [10**6]},
        {"known_tokens": [1.0]},
    ],
)
def test_a_session_with_strange_fields_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    session, decoder = start()
    ask(session, "hi")
    path = tmp_path / "talk"
    session.save(path)
    extra = {**read_header(path).extra, **change}
    write_cache(path, decoder, bundle=session.engine.bundle_hash, tokens=decoder.context, extra=extra)
    with pytest.raises(UsageError):
        session.load(path)
    assert len(session.messages) == 2


def test_what_was_dropped_stays_dropped(tmp_path: Path) -> None:
    engine = build_fake_engine(echo, context_length=120)
    session = ChatSession(engine, on_full="shift")
    for index in range(8):
        ask(session, f"question {index}")
    assert session.n_dropped > 0
    session.save(tmp_path / "talk")
    other = ChatSession(build_fake_engine(echo, context_length=120), on_full="shift")
    other.load(tmp_path / "talk")
    assert other.n_dropped == session.n_dropped and other.messages == session.messages
    assert ask(other, "next") == "You said: next"
    assert other.last_stats is not None and other.last_stats.reused_tokens > 20
