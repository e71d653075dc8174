"""Text to tokens and back, with the `tokenizers` library's own file format."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from edgeawq.errors import BundleError, GenerationError

MAX_TOKENIZER_BYTES = 128 << 20  # the largest public vocabularies (262 k tokens) need about 35 MB
MAX_TEXT_CHARS = 16 << 20
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class _DecoderKind:
    """Which streaming rule the `decoder` section of a tokenizer.json asks for."""

    name: str  # "byte_level" | "byte_fallback" | "other"
    strips_first_space: bool = False


class Tokenizer:
    """A loaded tokenizer.json. Text is encoded without hidden additions; a chat template writes its own specials."""

    def __init__(
        self,
        backend: Any,
        *,
        add_bos_token_id: int | None = None,
        keep_vocabulary: Callable[[], bool] | None = None,
    ) -> None:
        self._backend = backend
        self._keep_vocabulary = keep_vocabulary
        self._add_bos_token_id = add_bos_token_id
        self._kind = _read_decoder_kind(backend)
        self._special_ids = frozenset(id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special)

    @classmethod
    def from_json(
        cls, text: str, *, add_bos_token: str | None = None, vocabulary_folder: Path | None = None
    ) -> Tokenizer:
        """Load the text of a tokenizer.json; `add_bos_token` is put before plain text (not before a chat).

        `vocabulary_folder` keeps what makes the next start quick (`edgeawq.runtime.quick_tokenizer`).
        """
        keep_vocabulary = None
        try:
            if vocabulary_folder is not None:
                from edgeawq.runtime.quick_tokenizer import open_quick_backend

                backend, keep_vocabulary = open_quick_backend(text, vocabulary_folder)
            else:
                from tokenizers import Tokenizer as Backend

                backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare Exception for everything
            raise BundleError(
                f"the tokenizer does not load: {error}",
                remedy="pack the bundle again, or install the version of 'tokenizers' that wrote it",
            ) from error
        bos_id = None
        if add_bos_token is not None:
            bos_id = backend.token_to_id(add_bos_token)
            if bos_id is None:
                raise BundleError(
                    f"the tokenizer has no token {add_bos_token!r}, which should begin every text",
                    remedy="pack the bundle again from a complete model folder",
                )
        return cls(backend, add_bos_token_id=bos_id, keep_vocabulary=keep_vocabulary)

    @classmethod
    def from_file(cls, path: Path, *, add_bos_token: str | None = None) -> Tokenizer:
        """Load a tokenizer.json from disk; its size is checked before it is read."""
        try:
            size = path.stat().st_size
            if size > MAX_TOKENIZER_BYTES:
                raise BundleError(
                    f"{path} has {size} bytes, more than the limit of {MAX_TOKENIZER_BYTES} for a tokenizer",
                    remedy="check that this is a tokenizer.json",
                )
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"cannot read the tokenizer {path}: {error}", remedy="pack the bundle again") from error
        return cls.from_json(text, add_bos_token=add_bos_token)

    def prepare_next_start(self) -> None:
        """Keep what makes the next start quick, once; takes a fraction of a second, so nobody should be waiting."""
        keep, self._keep_vocabulary = self._keep_vocabulary, None
        if keep is not None:
            keep()

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of text that is complete in itself, such as a rendered chat: nothing is added."""
        if len(text) > MAX_TEXT_CHARS:
            raise GenerationError(
                f"the text has {len(text)} characters, more than the limit of {MAX_TEXT_CHARS}",
                remedy="give a shorter prompt",
            )
        # A lone surrogate (from undecodable bytes on the command line) is no Unicode text and Rust refuses it.
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        return list(self._backend.encode(clean, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of plain text, with the begin-of-text token in front where the model wants one."""
        tokens = self.encode(text)
        if self._add_bos_token_id is not None and tokens[:1] != [self._add_bos_token_id]:
            tokens.insert(0, self._add_bos_token_id)
        return tokens

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of a whole token sequence."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=skip_special))

    def token_id(self, token: str) -> int | None:
        """Id of the token written exactly so, such as "<|im_end|>"; None where there is none."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control mark that is never shown."""
        return token_id in self._special_ids

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one token at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    def _written_form(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"); None for an unused id."""
        token = self._backend.id_to_token(token_id)
        return None if token is None else str(token)


class StreamDecoder:
    """Turns tokens into text one at a time; what `push` and `flush` return adds up to the text of the sequence.

    A character is returned only when all its bytes are there. For valid UTF-8 the sum equals `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._rule: _Rule
        if tokenizer._kind.name == "byte_level":
            self._rule = _ByteLevelRule()
        elif tokenizer._kind.name == "byte_fallback":
            self._rule = _ByteFallbackRule(strips_first_space=tokenizer._kind.strips_first_space)
        else:
            self._rule = _WindowRule(tokenizer)

    def push(self, token_id: int) -> str:
        """Take one token; return the text that it completes, often one word, sometimes nothing."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        written = self._tokenizer._written_form(token_id)
        return "" if written is None else self._rule.push(token_id, written)

    def flush(self) -> str:
        """End of the sequence: return what is left, an unfinished character as U+FFFD."""
        return self._rule.flush()


class _Rule(Protocol):
    def push(self, token_id: int, written: str) -> str: ...

    def flush(self) -> str: ...


class _ByteLevelRule:
    """GPT-2's byte-level BPE: every character of a token stands for one byte."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int, written: str) -> str:
        table = build_byte_table()
        try:
            raw = bytes([table[char] for char in written])
        except KeyError:  # an added token that is written as it is
            raw = written.encode("utf-8")
        return self._utf8.decode(raw)

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _ByteFallbackRule:
    """SentencePiece: "▁" is a space, "<0xNN>" one byte, anything else stands for itself."""

    def __init__(self, *, strips_first_space: bool) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_next = strips_first_space

    def push(self, token_id: int, written: str) -> str:
        byte = _read_byte_token(written)
        if byte is not None:
            return self._take(self._utf8.decode(bytes([byte])))
        # A whole piece after an unfinished character: that character will never be finished.
        broken = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return self._take(broken + written.replace("\u2581", " "))

    def flush(self) -> str:
        return self._take(self._utf8.decode(b"", final=True))

    def _take(self, text: str) -> str:
        if self._strip_next and text:
            self._strip_next = False
            return text.removeprefix(" ")
        return text


class _WindowRule:
    """Any other decoder: decode a short window of tokens with and without the newest, return the difference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._n_done = 0  # tokens of the window whose text has been returned

    def push(self, token_id: int, written: str) -> str:
        self._window.append(token_id)
        before = self._decode(self._window[: self._n_done])
        after = self._decode(self._window)
        if after.endswith(REPLACEMENT) and len(self._window) - self._n_done < 4:  # UTF-8 has at most 4 bytes
            return ""
        if len(after) < len(before):
            return ""
        self._window = self._window[self._n_done :]
        self._n_done = len(self._window)
        return after[len(before) :]

    def flush(self) -> str:
        before = self._decode(self._window[: self._n_done])
        after = self._decode(self._window)
        self._window, self._n_done = [], 0
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special=False) if tokens else ""


@lru_cache(maxsize=1)
def build_byte_table() -> dict[str, int]:
    """GPT-2's table from printable characters back to bytes (`bytes_to_unicode` of the GPT-2 release, inverted)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update((chr(256 + index), byte) for index, byte in enumerate(others))
    return table


def _read_byte_token(written: str) -> int | None:
    if len(written) == 6 and written.startswith("<0x") and written.endswith(">"):
        try:
            return int(written[3:5], 16)
        except ValueError:
            return None
    return None


def _read_decoder_kind(backend: Any) -> _DecoderKind:
    """Only the two common shapes are recognized; anything else goes through the library itself."""
    if backend.decoder is None:
        return _DecoderKind("other")
    section: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = section["decoders"] if section.get("type") == "Sequence" else [section]
    types = [step.get("type") for step in steps]
    if types == ["ByteLevel"]:
        return _DecoderKind("byte_level")
    replaces_mark = bool(steps) and steps[0].get("pattern") == {"String": "\u2581"} and steps[0].get("content") == " "
    if types[:3] == ["Replace", "ByteFallback", "Fuse"] and replaces_mark:
        if len(steps) == 3:
            return _DecoderKind("byte_fallback")
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if len(steps) == 4 and steps[3] == strip:
            return _DecoderKind("byte_fallback", strips_first_space=True)
    return _DecoderKind("other")
