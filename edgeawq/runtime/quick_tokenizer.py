"""A tokenizer that is ready in a tenth of the time: only the part of the vocabulary that a text can need.

Parsing a tokenizer.json is the largest part of a cold start, and most of it is spent on hash tables of every token and
every merge. But byte-level BPE joins neighbours only, so a token that is no substring of a text can never come up while
that text is cut. So a small file beside the bundle's own, made at the first start, holds the tokens as a plain list and
the merges as numbers; a text gets a tokenizer of the tokens that are substrings of it (some hundred), with all merges
between them in their order. It gives the same tokens. What does not fit (another kind of tokenizer, long texts) goes
through the whole one, which is then loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeawq.errors import EdgeawqError
from edgeawq.runtime.cache_folder import prune_folder
from edgeawq.runtime.tokenizer import build_byte_table
from edgeawq.runtime.whole_file import write_whole

MAGIC = b"EDGEAWQ\x02"
MAX_FILE_BYTES = 256 << 20
MAX_FILES = 8  # vocabularies that are kept
LEAST_CHARS = 256 << 10  # a smaller tokenizer.json is parsed in a few milliseconds
MAX_QUICK_CHARS = 8192  # longer texts have many substrings: the whole tokenizer is as fast
_DIGEST_BYTES = 32
_END = "\0"  # between tokens; no token of a byte-level vocabulary has it
# A file is kept only if it cuts this as the whole tokenizer does.
_PROBE = "Hello, wörld!  It's 12345 o'clock…\n\n\tdef f(x): return x**2  # 日本語 🙂🙂 наука\r\n   fin"
_PLAIN_STEPS = {"ByteLevel", "Split", "Digits"}


@dataclass(frozen=True)
class Vocabulary:
    """What the file holds."""

    skeleton: dict[str, Any]  # the tokenizer.json without tokens and merges
    tokens: list[str]  # by id, without added ones beyond the model's own
    merges: npt.NDArray[np.int32]  # [3, merges]: left, right and joined token


def read_vocabulary(document: dict[str, Any]) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json; None for a kind that cannot be cut down by substrings."""
    model = document.get("model", {})
    pre_tokenizer = document.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    plain = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    is_plain = (
        model.get("type") == "BPE"
        and all((model.get(key) or None) is value for key, value in plain.items())
        and not model.get("byte_fallback")
        and not model.get("unk_token")
        and document.get("normalizer") is None
        and document.get("truncation") is None
        and document.get("padding") is None
        and [step.get("type") for step in steps].count("ByteLevel") == 1
        and all(step.get("type") in _PLAIN_STEPS and not step.get("add_prefix_space") for step in steps)
    )
    if not is_plain:
        return None
    vocab = model["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    added = [entry["content"] for entry in document["added_tokens"]]
    if model.get("ignore_merges") and not set(added) <= set(vocab):
        return None  # an added token would be found as a whole word
    is_sound = [vocab[token] for token in tokens] == list(range(len(tokens)))
    if (
        not is_sound
        or any(_END in token for token in tokens)
        or any(len(token) < 2 for token in set(added) - set(vocab))
    ):
        return None
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = np.array([[vocab[a], vocab[b], vocab[a + b]] for a, b in pairs], dtype=np.int32).reshape(-1, 3).T
    skeleton = {**document, "model": {**model, "vocab": {}, "merges": []}}
    return Vocabulary(skeleton, tokens, np.ascontiguousarray(merges))


class QuickBackend:
    """Stands in for `tokenizers.Tokenizer` as far as `edgeawq.runtime.tokenizer` uses it."""

    def __init__(self, vocabulary: Vocabulary, load_whole: Callable[[], Any]) -> None:
        self._vocabulary = vocabulary
        self._load_whole = load_whole
        self._whole: Any = None
        self._added = {entry["content"]: int(entry["id"]) for entry in vocabulary.skeleton["added_tokens"]}
        self._added_by_id = {id_: token for token, id_ in self._added.items()}
        self._letters = str.maketrans({byte: char for char, byte in build_byte_table().items()})
        self._base = self._build("")

    @property
    def added_tokens(self) -> list[str]:
        """The added tokens as they are written."""
        return list(self._added)

    @property
    def whole(self) -> Any:
        """The whole tokenizer; loaded when it is first needed."""
        if self._whole is None:
            self._whole = self._load_whole()
        return self._whole

    @property
    def decoder(self) -> Any:
        """The decoder section."""
        return self._base.decoder

    def get_added_tokens_decoder(self) -> Any:
        """Added tokens by id."""
        return self._base.get_added_tokens_decoder()

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """How many tokens there are."""
        n_tokens = len(self._vocabulary.tokens)
        return n_tokens + sum(id_ >= n_tokens for id_ in self._added_by_id) * with_added_tokens

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """The encoding of a text, as the whole tokenizer gives it."""
        if self._whole is not None or add_special_tokens or len(text) > MAX_QUICK_CHARS:
            return self.whole.encode(text, add_special_tokens=add_special_tokens)
        return self._build(text).encode(text, add_special_tokens=False)

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return str(self.whole.decode(tokens, skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        """Id of a token; None where there is none."""
        if token in self._added:
            return self._added[token]
        try:
            return self._vocabulary.tokens.index(token)
        except ValueError:
            return None

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id; None where there is none."""
        tokens = self._vocabulary.tokens
        return self._added_by_id.get(token_id) or (tokens[token_id] if 0 <= token_id < len(tokens) else None)

    def _build(self, text: str) -> Any:
        """A tokenizer with the tokens that are substrings of `text` in its byte-level spelling."""
        from tokenizers import Tokenizer

        vocabulary = self._vocabulary
        spelled = text.encode("utf-8").decode("latin-1").translate(self._letters)
        ids = [id_ for id_, token in enumerate(vocabulary.tokens) if token in spelled] if text else []
        is_kept = np.zeros(len(vocabulary.tokens), np.bool_)
        is_kept[ids] = True
        left, right, joined = vocabulary.merges
        # the two parts of a substring are substrings too
        kept = np.flatnonzero(is_kept[joined])
        tokens = vocabulary.tokens
        pairs = zip(left[kept].tolist(), right[kept].tolist(), strict=True)
        document = {
            **vocabulary.skeleton,
            "model": {
                **vocabulary.skeleton["model"],
                # added tokens are named here so that they keep their ids; no merge makes them
                "vocab": {**self._added, **{tokens[id_]: id_ for id_ in ids}},
                "merges": [[tokens[a], tokens[b]] for a, b in pairs],
            },
        }
        return Tokenizer.from_str(json.dumps(document))


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Keep a vocabulary; UsageError when it cannot be written."""
    header = json.dumps({"skeleton": vocabulary.skeleton, "merges": vocabulary.merges.shape[1]}).encode()
    tokens = _END.join(vocabulary.tokens).encode("utf-8")
    sizes = len(header).to_bytes(4, "little") + len(tokens).to_bytes(4, "little")
    data = MAGIC + sizes + header + tokens + vocabulary.merges.astype("<i4").tobytes()

    def write(file: Any) -> None:
        file.write(data + hashlib.sha256(data).digest())

    write_whole(path, write)


def load_vocabulary(path: Path) -> Vocabulary | None:
    """What `write_vocabulary` has kept; None when the file is absent or damaged in any way."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if body[:8] != MAGIC or hashlib.sha256(body).digest() != digest:
            return None
        n_header, n_tokens = int.from_bytes(body[8:12], "little"), int.from_bytes(body[12:16], "little")
        header = json.loads(body[16 : 16 + n_header])
        tokens = body[16 + n_header : 16 + n_header + n_tokens].decode("utf-8").split(_END)
        merges = np.frombuffer(body[16 + n_header + n_tokens :], "<i4").reshape(3, header["merges"])
        if merges.size and not 0 <= int(merges.min()) <= int(merges.max()) < len(tokens):
            return None
        return Vocabulary(header["skeleton"], tokens, merges)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_quick_backend(text: str, folder: Path) -> tuple[Any, Callable[[], bool] | None]:
    """A backend for the text of a tokenizer.json: quick where `folder` has its vocabulary, otherwise the whole one.

    Also returns what keeps the vocabulary for the next start, to be called when nobody waits; None where nothing is to
    be kept. Raises what the library raises for a text that is no tokenizer.
    """
    from tokenizers import Tokenizer

    if len(text) < LEAST_CHARS:
        return Tokenizer.from_str(text), None
    path = folder / f"{hashlib.sha256(text.encode('utf-8')).hexdigest()[:40]}.vocab"
    vocabulary = load_vocabulary(path)
    if vocabulary is not None:
        return QuickBackend(vocabulary, lambda: Tokenizer.from_str(text)), None
    whole = Tokenizer.from_str(text)
    return whole, lambda: keep_vocabulary(path, text, whole)


def keep_vocabulary(path: Path, text: str, whole: Any) -> bool:
    """Write the vocabulary file if the tokenizer is of the right kind and the quick way gives the same tokens.

    A folder that cannot be written changes nothing: the next start takes the whole tokenizer again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    if not os.access(path.parent, os.W_OK):
        return False
    vocabulary = read_vocabulary(json.loads(text))
    if vocabulary is None:
        return False
    quick = QuickBackend(vocabulary, lambda: whole)
    probe = _PROBE + "".join(quick.added_tokens)
    if quick.encode(probe, add_special_tokens=False).ids != whole.encode(probe, add_special_tokens=False).ids:
        return False
    try:
        write_vocabulary(path, vocabulary)
    except EdgeawqError:
        return False
    prune_folder(path.parent, "*.vocab", MAX_FILES)
    return True
