"""Small tokenizers trained on the spot, one of each kind that models use."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome.",
    "Wie geht es dir? Schöne Grüße aus Köln! — ça va bien, merci…",
    "one two three four five six seven eight nine ten\n\n- item\n- item\n",
    "日本語のテキスト и немного русского текста 🙂🙂👍🏽",
    "def main() -> None:\n    print('hello, world')\n",
] * 4

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@lru_cache(maxsize=1)
def build_byte_level_json(vocab_size: int = 500) -> str:
    """GPT-2 style: every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


@lru_cache(maxsize=1)
def build_sentencepiece_json() -> str:
    """Llama 2 style: "▁" for spaces, byte fallback, and a space in front of the text that decoding takes away."""
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    # Only ASCII and the mark are in the alphabet, so that everything else goes through the byte tokens.
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special + byte_tokens, limit_alphabet=60, show_progress=False
    )
    trained.train_from_iterator([line for line in CORPUS if line.isascii()], trainer)
    # The byte tokens are ordinary vocabulary, not special ones: only the first three are marked.
    import json

    document = json.loads(trained.to_str())
    document["added_tokens"] = document["added_tokens"][: len(special)]
    document["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return json.dumps(document)


@lru_cache(maxsize=1)
def build_metaspace_json() -> str:
    """A kind without a rule of its own: it goes through the library's decoder."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return str(tokenizer.to_str())
