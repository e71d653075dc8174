"""Tokenizer and chat template of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeawq.checkpoints.json_file import read_json_object, read_optional_json_object, read_text
from edgeawq.checkpoints.model import TokenizerFiles
from edgeawq.checkpoints.tokenizer_json import load_tokenizer
from edgeawq.errors import CheckpointError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SENTENCEPIECE_FILE = "tokenizer.model"


def check_tokenizer_file(folder: Path) -> None:
    """Raise CheckpointError with a remedy where there is no tokenizer.json."""
    if (folder / TOKENIZER_JSON).is_file():
        return
    if (folder / SENTENCEPIECE_FILE).is_file():
        raise CheckpointError(
            f"{folder} holds its tokenizer only as {SENTENCEPIECE_FILE}; {TOKENIZER_JSON} is needed",
            remedy=f'convert it once: pip install sentencepiece && python -c "from transformers import AutoTokenizer; '
            f'AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"',
        )
    raise CheckpointError(
        f"{folder} holds no {TOKENIZER_JSON}", remedy="copy tokenizer.json and tokenizer_config.json of the model there"
    )


def read_hf_tokenizer(folder: Path, bos_token_id: int | None, eos_token_ids: tuple[int, ...]) -> TokenizerFiles:
    """Read tokenizer.json, tokenizer_config.json and chat_template.jinja.

    The ids stand in where the files do not name the special tokens.
    """
    path = folder / TOKENIZER_JSON
    text = read_text(path)
    tokenizer = load_tokenizer(text, str(path))
    described = read_json_object(path)
    config = read_optional_json_object(folder / TOKENIZER_CONFIG)
    special = read_optional_json_object(folder / "special_tokens_map.json")
    bos = read_token(config, special, "bos_token")
    eos = read_token(config, special, "eos_token")
    if bos is None and bos_token_id is not None:
        bos = tokenizer.id_to_token(bos_token_id)
    if eos is None and eos_token_ids:
        eos = tokenizer.id_to_token(eos_token_ids[0])
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = starts_with(described.get("post_processor"), bos)
    return TokenizerFiles(
        tokenizer_json=text,
        chat_template=read_chat_template(folder, config),
        bos_token=bos,
        eos_token=eos,
        add_bos_token=add_bos and bos is not None,
    )


def read_token(config: Mapping[str, object], special: Mapping[str, object], key: str) -> str | None:
    """A special token, written as a text or as an object with `content`."""
    for source in (config, special):
        value = source.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return None


def read_chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """The Jinja source: chat_template.jinja, else tokenizer_config.json's (one text, or a list of named ones)."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return read_text(path)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("template"), str)
        }
        template = named.get("default", next(iter(named.values()), None))
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / TOKENIZER_CONFIG}: chat_template is neither a text nor a list of named texts")
    return template


def starts_with(post_processor: object, token: str | None) -> bool:
    """Whether a tokenizer.json's post-processor puts `token` before plain text."""
    if not isinstance(post_processor, dict) or token is None:
        return False
    if post_processor.get("type") == "Sequence":
        return any(starts_with(step, token) for step in post_processor.get("processors", []))
    first = (post_processor.get("single") or [None])[0]
    return isinstance(first, dict) and (first.get("SpecialToken") or {}).get("id") == token
