"""How byte-level BPE tokenizers cut text into words, by the name in GGUF's `tokenizer.ggml.pre`.

Each entry is the split of the original model's tokenizer.json; the names and which models share a split are
llama.cpp's (src/llama-vocab.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeawq.errors import UnsupportedModelError

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
# The split of GPT-4's family: words take one leading character, line ends stay with what is before them.
GPT4 = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = GPT4 % "{1,3}"
QWEN2 = GPT4 % ""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """`splits` are regular expressions applied one after another; each cuts the pieces the one before left over."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a whole word that is in the vocabulary is taken as it is
    add_bos: bool = False  # where the metadata does not say


DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", GPT2))
PLAIN_GPT2 = PreTokenizer((GPT2,))
PLAIN_QWEN2 = PreTokenizer((QWEN2,))
PLAIN_LLAMA3 = PreTokenizer((LLAMA3,))
LLAMA3_WHOLE_WORDS = PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": PLAIN_GPT2,
    "phi-2": PLAIN_GPT2,
    "mpt": PLAIN_GPT2,
    "olmo": PLAIN_GPT2,
    "smollm": DIGITS_THEN_GPT2,
    "starcoder": DIGITS_THEN_GPT2,
    "refact": DIGITS_THEN_GPT2,
    "command-r": DIGITS_THEN_GPT2,
    "codeshell": DIGITS_THEN_GPT2,
    "exaone": DIGITS_THEN_GPT2,
    "llama-bpe": LLAMA3_WHOLE_WORDS,
    "llama3": LLAMA3_WHOLE_WORDS,
    "llama-v3": LLAMA3_WHOLE_WORDS,
    "falcon3": LLAMA3_WHOLE_WORDS,
    "dbrx": PLAIN_LLAMA3,
    "smaug-bpe": PLAIN_LLAMA3,
    "qwen2": PLAIN_QWEN2,
    "deepseek-r1-qwen": PLAIN_QWEN2,
    "stablelm2": PLAIN_QWEN2,
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The split named `name`; raises UnsupportedModelError for one that is not known."""
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        raise UnsupportedModelError(
            f"the tokenizer splits words in a way that is not known: tokenizer.ggml.pre is {name!r} "
            f"(known: {', '.join(sorted(PRE_TOKENIZERS))})",
            remedy="use the model's original Hugging Face folder, which holds tokenizer.json",
        )
    return found


def describe_pre_tokenizer(pre_tokenizer: PreTokenizer) -> dict[str, object]:
    """The `pre_tokenizer` of a tokenizer.json."""
    steps: list[dict[str, object]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre_tokenizer.splits
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}
