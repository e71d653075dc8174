"""A conversation: messages, and the KV cache that remembers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeawq.errors import EdgeawqError, UsageError
from edgeawq.runtime.cache_file import (
    find_mismatch,
    is_cache_file,
    load_cache,
    read_header,
    write_cache,
)
from edgeawq.runtime.chat_template import Message
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.generate import FinishReason, OnFull, Piece, check_fits, generate
from edgeawq.runtime.prompt_cache import PromptCache
from edgeawq.runtime.sampler import Sampler
from edgeawq.runtime.session_file import SavedChat, from_document, read_chat, to_document, write_chat
from edgeawq.runtime.stats import GenerationStats
from edgeawq.runtime.tokenizer import REPLACEMENT
from edgeawq.runtime.window import N_SINKS


@dataclass(frozen=True)
class LoadedChat:
    """What came back from a file."""

    chat: SavedChat
    n_cached: int  # tokens that are in the KV cache again
    note: str = ""  # why the saved KV cache could not be used; the conversation is then read again


class ChatSession:
    """A conversation with one model. Only what is new since the last turn goes through the model again."""

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        stop_strings: Sequence[str] = (),
        speculates: bool = False,
        on_full: OnFull = "stop",
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.speculates = speculates  # whether answers are drafted from the text so far (edgeawq.runtime.speculate)
        self.on_full: OnFull = on_full  # "shift" drops the oldest part when the context is full, "stop" ends there
        self._engine = engine
        self._system = system or None
        self._messages: list[Message] = []
        self._n_dropped = 0  # messages at the beginning that no longer fit into the context
        self._cached: list[int] = []  # the tokens in the decoder's KV cache
        self._stop_strings = (*engine.template.stop_strings, *stop_strings)
        self._prompt_cache = prompt_cache
        self._known_text = ""  # the beginning of the conversation whose tokens are known exactly …
        self._known_tokens: list[int] = []  # … and these tokens
        self._last_stats: GenerationStats | None = None
        engine.decoder.rewind(0)

    @property
    def engine(self) -> Engine:
        """The model that answers."""
        return self._engine

    @property
    def system(self) -> str | None:
        """The system prompt; None leaves it to the model's template."""
        return self._system

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns so far, without the system prompt."""
        return tuple(self._messages)

    @property
    def context_used(self) -> int:
        """Tokens of the context window in use."""
        return self._engine.decoder.position

    @property
    def context_length(self) -> int:
        """Tokens that the context window holds."""
        return self._engine.decoder.context_length

    @property
    def n_dropped(self) -> int:
        """Messages at the beginning that the model no longer sees, because the context was full."""
        return self._n_dropped

    @property
    def last_stats(self) -> GenerationStats | None:
        """Figures of the newest answer."""
        return self._last_stats

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays (and so does its part of the KV cache)."""
        self._messages.clear()
        self._n_dropped = 0

    def set_system(self, text: str | None) -> None:
        """Change the system prompt from the next answer on; None or "" removes it."""
        self._system = text or None

    def reply(
        self,
        text: str,
        sampler: Sampler,
        *,
        max_new_tokens: int | None = None,
        on_prefill_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Piece]:
        """Say `text` and yield the answer. What was answered stays in the conversation, also when it was cut short.

        When no token was answered (an error, or cancelled while the prompt was read), the question is taken back.
        Raises ContextFullError when the conversation no longer fits.
        """
        self._messages.append(Message("user", text))
        prompt_text, prompt = "", self._cached
        answer: list[str] = []
        tokens: list[int] = []
        left, n_before = None, 0  # what the last shift has left, and how many tokens of the answer came before it
        finish_reason: FinishReason | None = None

        def note_shift(window: list[int]) -> None:
            nonlocal left, n_before
            left, n_before = window, len(tokens)

        try:
            prefix = self._find_prefix() if self._prompt_cache or self.on_full == "shift" else []
            prompt_text, prompt = self._fit(len(prefix))
            self._restore_prefix(prefix, prompt)
            pieces = self._generate(
                prompt, sampler, max_new_tokens, len(prefix), note_shift, on_prefill_progress, cancelled
            )
            for piece in pieces:
                answer.append(piece.text)
                tokens += piece.token_ids
                finish_reason = piece.finish_reason
                self._last_stats = piece.stats
                yield piece
            self._store_prefix(prefix, left or prompt)
        finally:
            # Also when the reader of this generator goes away: the KV cache keeps what the decoder has taken in.
            self._cached = [*(left or prompt), *tokens[n_before:]][: self._engine.decoder.position]
            if tokens:
                self._messages.append(Message("assistant", "".join(answer)))
                self._remember(prompt_text, prompt, "".join(answer), tokens, finish_reason)
            else:
                self._messages.pop()

    def save(self, path: Path) -> None:
        """Write the conversation; the file appears whole or not at all.

        A name that ends in .json takes the messages alone, for any model. Any other name takes the KV cache too, so
        that the same bundle goes on without reading anything again.
        """
        chat = SavedChat(self._engine.model_name, self._system, tuple(self._messages))
        if path.suffix == ".json":
            write_chat(path, chat)
            return
        extra = {
            "chat": to_document(chat),
            "dropped": self._n_dropped,
            "known_text": self._known_text,
            "known_tokens": self._known_tokens,
        }
        engine = self._engine
        tokens = self._cached[: engine.decoder.position]
        write_cache(path, engine.decoder, bundle=engine.bundle_hash, tokens=tokens, extra=extra)

    def load(self, path: Path) -> LoadedChat:
        """Go on with a saved conversation; nothing changes when the file is not one.

        A KV cache of another bundle, of another kind or too long for the context is left out, and the note says so.
        """
        if not is_cache_file(path):
            return self._take(read_chat(path), 0, "")
        engine = self._engine
        header = read_header(path)
        chat = from_document(path, header.extra.get("chat"))
        problem = find_mismatch(
            header, engine.decoder, bundle=engine.bundle_hash, vocab_size=engine.tokenizer.vocab_size
        )
        if problem:
            return self._take(chat, 0, f"its KV cache is of no use: {problem}; the conversation is read again")
        state = _read_state(path, header.extra, len(chat.messages), engine.tokenizer.vocab_size)
        self._cached = []
        load_cache(path, header, engine.decoder)
        loaded = self._take(chat, len(header.tokens), "")
        self._cached = list(header.tokens)
        self._n_dropped, self._known_text, self._known_tokens = state
        return loaded

    def _take(self, chat: SavedChat, n_cached: int, note: str) -> LoadedChat:
        self._system = chat.system
        self._messages = list(chat.messages)
        self._n_dropped = 0
        self._known_text, self._known_tokens = "", []
        return LoadedChat(chat, n_cached, note)

    def _generate(
        self,
        prompt: list[int],
        sampler: Sampler,
        max_new_tokens: int | None,
        n_keep: int,
        on_shift: Callable[[list[int]], None],
        on_prefill_progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[Piece]:
        engine = self._engine
        # At least one token goes through the model: its logits are where the answer starts.
        n_kept = min(count_common_prefix(self._cached, prompt), len(prompt) - 1)
        engine.decoder.rewind(n_kept)
        return generate(
            engine.decoder,
            engine.tokenizer,
            prompt[n_kept:],
            sampler,
            max_new_tokens=max_new_tokens,
            stop_token_ids=engine.stop_token_ids,
            stop_strings=self._stop_strings,
            history=prompt[:n_kept],
            speculate=self.speculates,
            on_full=self.on_full,
            n_keep=max(n_keep, N_SINKS),
            on_shift=on_shift,
            on_prefill_progress=on_prefill_progress,
            cancelled=cancelled,
        )

    def _fit(self, n_prefix: int) -> tuple[str, list[int]]:
        """The conversation as text and tokens. With "shift", old turns are left out when it does not fit."""
        text, tokens = self._encode()
        total = self.context_length
        if self.on_full == "stop" or len(tokens) <= total:
            return text, tokens
        n_dropped = self._n_dropped
        try:
            # as a shift in the middle of an answer: half of what is not the system prompt goes
            while len(tokens) > n_prefix + (total - n_prefix) // 2 and len(self._messages) - self._n_dropped > 2:
                self._n_dropped += 2
                text, tokens = self._encode()
            check_fits(len(tokens), total)
        except EdgeawqError:
            self._n_dropped = n_dropped
            raise
        return text, tokens

    def _find_prefix(self) -> list[int]:
        """The tokens that every conversation with this system prompt begins with."""
        # The two questions differ in their first character, so the text before them is what they share.
        one, two = (self._render([Message("user", question)]) for question in ("a", "Z"))
        encode = self._engine.tokenizer.encode_plain if self._is_plain else self._engine.tokenizer.encode
        left, right = encode(one), encode(two)
        return left[: count_common_prefix(left, right)]

    def _restore_prefix(self, prefix: list[int], prompt: list[int]) -> None:
        """Load the system prompt's KV cache where it is kept and would have to be read."""
        n_same = count_common_prefix(self._cached, prompt)
        is_wanted = prompt[: len(prefix)] == prefix and n_same < len(prefix)
        if self._prompt_cache is None or not is_wanted:
            return
        self._cached = []
        if self._prompt_cache.restore(self._engine, prefix):
            self._cached = list(prefix)

    def _store_prefix(self, prefix: list[int], text: list[int]) -> None:
        if self._prompt_cache is not None and text[: len(prefix)] == prefix:
            self._prompt_cache.store(self._engine, prefix)

    @property
    def _is_plain(self) -> bool:
        # A template writes the begin-of-text token itself; the plain format leaves that to the tokenizer.
        return self._engine.template.source is None

    def _render(self, messages: Sequence[Message]) -> str:
        system = [Message("system", self._system)] if self._system else []
        return self._engine.template.render([*system, *messages])

    def _encode(self) -> tuple[str, list[int]]:
        """The conversation as text and as tokens, in the very tokens that the model wrote where it can be."""
        tokenizer = self._engine.tokenizer
        text = self._render(self._messages[self._n_dropped :])
        if self._known_text and text.startswith(self._known_text):
            rest = tokenizer.encode(text[len(self._known_text) :])
            # Tokens may be joined end to end only where a control mark keeps the two texts apart.
            if rest and tokenizer.is_special(rest[0]):
                return text, [*self._known_tokens, *rest]
        return text, tokenizer.encode_plain(text) if self._is_plain else tokenizer.encode(text)

    def _remember(
        self, prompt_text: str, prompt: list[int], answer: str, tokens: list[int], finish_reason: FinishReason | None
    ) -> None:
        """Keep the model's own tokens of this text: encoding the text again may cut words differently.

        Not possible where text and tokens do not say the same: a stop string that was cut off, a hidden control
        token, half a character.
        """
        tokenizer, stops = self._engine.tokenizer, self._engine.stop_token_ids
        spoken = tokens[:-1] if tokens[-1] in stops else tokens
        cut_by_string = finish_reason == "stop" and spoken is tokens
        if cut_by_string or REPLACEMENT in answer or any(map(tokenizer.is_special, spoken)):
            self._known_text, self._known_tokens = "", []
        else:
            self._known_text, self._known_tokens = prompt_text + answer, [*prompt, *spoken]


def count_common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    n_common = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        n_common += 1
    return n_common


def _read_state(path: Path, extra: dict[str, Any], n_messages: int, vocab_size: int) -> tuple[int, str, list[int]]:
    """(messages dropped, known text, known tokens) of a saved session; UsageError when they make no sense."""
    n_dropped, text, tokens = extra.get("dropped"), extra.get("known_text"), extra.get("known_tokens")
    if (
        type(n_dropped) is int
        and 0 <= n_dropped <= n_messages
        and n_dropped % 2 == 0
        and isinstance(text, str)
        and isinstance(tokens, list)
        and all(type(token) is int and 0 <= token < vocab_size for token in tokens)
    ):
        return n_dropped, text, tokens
    raise UsageError(
        f"{path} has a header with fields of the wrong kind", remedy="give a file that /save or --session has written"
    )
