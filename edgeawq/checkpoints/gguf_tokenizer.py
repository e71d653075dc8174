"""A `tokenizers` tokenizer rebuilt from the metadata of a GGUF file.

Two kinds exist in the Llama family: byte-level BPE ("gpt2") with its list of merges, and SentencePiece BPE ("llama")
with a score per token, whose merges follow from the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from edgeawq.checkpoints.gguf_pre_tokenizers import PreTokenizer, describe_pre_tokenizer, find_pre_tokenizer
from edgeawq.checkpoints.model import TokenizerFiles
from edgeawq.checkpoints.tokenizer_json import check_tokenizer_json
from edgeawq.errors import CheckpointError, UnsupportedModelError

# llama.cpp's token types.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
SPACE_MARK = "\u2581"
# Tokens that end an answer. Files name one `eos_token_id`; a chat model often needs the other one too.
END_OF_TURN_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<|eot|>",
    }
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file; `types` has one of llama.cpp's token types for each."""

    tokens: list[str]
    types: list[int]
    bos_token_id: int | None
    eos_token_id: int | None
    end_of_turn_ids: tuple[int, ...]

    def text_of(self, token_id: int | None) -> str | None:
        """The text of a token, None for no token."""
        return None if token_id is None else self.tokens[token_id]


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """The tokens and the special ones among them; raises CheckpointError where they contradict each other."""
    tokens = read_list(metadata, "tokenizer.ggml.tokens", str)
    if not tokens:
        raise CheckpointError(
            "the GGUF file holds no vocabulary (tokenizer.ggml.tokens is missing or empty)",
            remedy="use a file that holds the whole model, not an adapter or a projector",
        )
    types = read_list(metadata, "tokenizer.ggml.token_type", int) or [1] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"the GGUF file has {len(tokens):,} tokens but {len(types):,} token types")
    ids = [
        read_token_id(metadata, f"tokenizer.ggml.{key}_token_id", len(tokens)) for key in ("bos", "eos", "eot", "eom")
    ]
    ends = [token_id for token_id in ids[1:] if token_id is not None]
    ends += [
        token_id
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == CONTROL and token in END_OF_TURN_TOKENS
    ]
    return Vocabulary(tokens, types, ids[0], ids[1], tuple(dict.fromkeys(ends)))


def read_tokenizer(metadata: Mapping[str, object], vocabulary: Vocabulary) -> TokenizerFiles:
    """Build tokenizer.json, chat template and special tokens; raises UnsupportedModelError for an unknown kind."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        pre_tokenizer = find_pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
        described = describe_byte_level_bpe(metadata, vocabulary, pre_tokenizer)
        add_bos_default = pre_tokenizer.add_bos
    elif kind == "llama":
        described = describe_sentencepiece_bpe(metadata, vocabulary)
        add_bos_default = True
    else:
        raise UnsupportedModelError(
            f"the GGUF file's tokenizer is of the kind {kind!r}; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece)",
            remedy="use the model's original Hugging Face folder, which holds tokenizer.json",
        )
    add_bos = (
        bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos_default)) and vocabulary.bos_token_id is not None
    )
    described["added_tokens"] = describe_added_tokens(vocabulary)
    described["post_processor"] = describe_post_processor(vocabulary, add_bos)
    template = metadata.get("tokenizer.chat_template")
    return TokenizerFiles(
        tokenizer_json=check_tokenizer_json(json.dumps(described, ensure_ascii=False), "the GGUF file's tokenizer"),
        chat_template=template if isinstance(template, str) and template.strip() else None,
        bos_token=vocabulary.text_of(vocabulary.bos_token_id),
        eos_token=vocabulary.text_of(vocabulary.eos_token_id),
        add_bos_token=add_bos,
    )


def describe_byte_level_bpe(
    metadata: Mapping[str, object], vocabulary: Vocabulary, pre_tokenizer: PreTokenizer
) -> dict[str, object]:
    """A tokenizer.json in which text is bytes written as printable characters (GPT-2's alphabet)."""
    merges: list[list[str]] = []
    for merge in read_list(metadata, "tokenizer.ggml.merges", str):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise CheckpointError(f"the GGUF file's tokenizer has a merge of one piece: {merge!r}")
        merges.append([left, right])
    if not merges:
        raise CheckpointError(
            "the GGUF file's tokenizer has no merges (tokenizer.ggml.merges), so text cannot be tokenized",
            remedy="convert the model again with a current llama.cpp",
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": describe_pre_tokenizer(pre_tokenizer),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer.ignore_merges,
            "vocab": index_tokens(vocabulary.tokens),
            "merges": merges,
        },
    }


def describe_sentencepiece_bpe(metadata: Mapping[str, object], vocabulary: Vocabulary) -> dict[str, object]:
    """A tokenizer.json in which spaces are written as a mark and unknown characters as bytes."""
    scores = read_list(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise CheckpointError(
            f"the GGUF file has {len(vocabulary.tokens):,} tokens but {len(scores):,} scores (tokenizer.ggml.scores)",
            remedy="convert the model again with a current llama.cpp",
        )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    normalizers = [{"type": "Prepend", "prepend": SPACE_MARK}, replace] if prefix else [replace]
    decoders: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNKNOWN]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": vocabulary.types.count(BYTE) == 256,
            "ignore_merges": False,
            "vocab": index_tokens(vocabulary.tokens),
            "merges": derive_merges(vocabulary, scores),
        },
    }


def derive_merges(vocabulary: Vocabulary, scores: list[float]) -> list[list[str]]:
    """The merges, best first, that make BPE choose as SentencePiece does: always the pair whose union scores highest.

    A token reached in several ways gets a merge for each of them, side by side in the order.
    """
    mergeable = {
        token: -score
        for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
        if kind not in (CONTROL, UNKNOWN, BYTE)
    }
    merges: list[list[str]] = []
    for token in sorted(mergeable, key=mergeable.__getitem__):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in mergeable and right in mergeable:
                merges.append([left, right])
    return merges


def describe_added_tokens(vocabulary: Vocabulary) -> list[dict[str, object]]:
    """Tokens that are found in the text before anything else is done to it."""
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and token
    ]


def describe_post_processor(vocabulary: Vocabulary, add_bos: bool) -> dict[str, object] | None:
    """Puts the beginning-of-sequence token before plain text where the model was trained so."""
    bos = vocabulary.text_of(vocabulary.bos_token_id)
    if not add_bos or bos is None:
        return None
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_token_id], "tokens": [bos]}},
    }


def index_tokens(tokens: list[str]) -> dict[str, int]:
    """Token to id; where a text is there twice, the first id counts."""
    index: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        index.setdefault(token, token_id)
    return index


def read_token_id(metadata: Mapping[str, object], key: str, vocab_size: int) -> int | None:
    """A token's id; None where the key is absent. Raises CheckpointError for an id outside the vocabulary."""
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < vocab_size:
        raise CheckpointError(f"the GGUF file's {key} is {value!r}, outside its vocabulary of {vocab_size:,} tokens")
    return value


def read_list(metadata: Mapping[str, object], key: str, kind: type) -> list:  # type: ignore[type-arg]
    """A list of values of one type; empty where the key is absent."""
    values = metadata.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise CheckpointError(f"the GGUF file's {key} is not a list of {kind.__name__}")
    return values
