"""A conversation: messages, and the KV cache that remembers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeawq.runtime.chat_template import Message
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.generate import FinishReason, GenerationStats, Piece, generate
from edgeawq.runtime.sampler import Sampler
from edgeawq.runtime.session_file import SavedChat, read_chat, write_chat
from edgeawq.runtime.tokenizer import REPLACEMENT


class ChatSession:
    """A conversation with one model. Only what is new since the last turn goes through the model again."""

    def __init__(self, engine: Engine, *, system: str | None = None, stop_strings: Sequence[str] = ()) -> None:
        self._engine = engine
        self._system = system or None
        self._messages: list[Message] = []
        self._cached: list[int] = []  # the tokens in the decoder's KV cache
        self._stop_strings = (*engine.template.stop_strings, *stop_strings)
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
    def last_stats(self) -> GenerationStats | None:
        """Figures of the newest answer."""
        return self._last_stats

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays (and so does its part of the KV cache)."""
        self._messages.clear()

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
        finish_reason: FinishReason | None = None
        try:
            prompt_text, prompt = self._encode()
            for piece in self._generate(prompt, sampler, max_new_tokens, on_prefill_progress, cancelled):
                answer.append(piece.text)
                tokens += piece.token_ids
                finish_reason = piece.finish_reason
                self._last_stats = piece.stats
                yield piece
        finally:
            # Also when the reader of this generator goes away: the KV cache keeps what the decoder has taken in.
            self._cached = [*prompt, *tokens][: self._engine.decoder.position]
            if tokens:
                self._messages.append(Message("assistant", "".join(answer)))
                self._remember(prompt_text, prompt, "".join(answer), tokens, finish_reason)
            else:
                self._messages.pop()

    def save(self, path: Path) -> None:
        """Write the conversation as JSON; the file appears whole or not at all."""
        write_chat(path, SavedChat(self._engine.model_name, self._system, tuple(self._messages)))

    def load(self, path: Path) -> SavedChat:
        """Go on with a saved conversation; nothing changes when the file is not one."""
        saved = read_chat(path)
        self._system = saved.system
        self._messages = list(saved.messages)
        return saved

    def _generate(
        self,
        prompt: list[int],
        sampler: Sampler,
        max_new_tokens: int | None,
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
            on_prefill_progress=on_prefill_progress,
            cancelled=cancelled,
        )

    def _encode(self) -> tuple[str, list[int]]:
        """The conversation as text and as tokens, in the very tokens that the model wrote where it can be."""
        tokenizer, template = self._engine.tokenizer, self._engine.template
        system = [Message("system", self._system)] if self._system else []
        text = template.render([*system, *self._messages])
        if self._known_text and text.startswith(self._known_text):
            rest = tokenizer.encode(text[len(self._known_text) :])
            # Tokens may be joined end to end only where a control mark keeps the two texts apart.
            if rest and tokenizer.is_special(rest[0]):
                return text, [*self._known_tokens, *rest]
        # A template writes the begin-of-text token itself; the plain format leaves that to the tokenizer.
        return text, tokenizer.encode_plain(text) if template.source is None else tokenizer.encode(text)

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
