"""Calibration tokens: text files and JSONL read as documents, packed into sequences with nothing dropped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.model import Checkpoint, TokenizerFiles
from edgeawq.errors import UsageError
from edgeawq.quantize.chat_text import RenderChat, make_chat_renderer
from edgeawq.quantize.documents import read_entry
from edgeawq.quantize.hub_dataset import HUB_NAME, HUB_SCHEME, read_hub_dataset

TEXT_SUFFIXES = (".txt", ".md", ".text")
JSONL_SUFFIX = ".jsonl"
MIN_TOKENS = 256
# Text beyond this is not read: at four bytes a token that is 16 million tokens, far more than a calibration uses.
MAX_TEXT_BYTES = 64 << 20

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class CalibrationSet:
    """Token ids [sequences, seqlen] and where they came from, for the report."""

    token_ids: torch.Tensor
    source: str
    n_documents: int
    n_tokens_found: int  # before a choice of --calib-tokens was made

    @property
    def n_tokens(self) -> int:
        """How many tokens are used."""
        return int(self.token_ids.numel())


def read_calibration(path: Path, checkpoint: Checkpoint, n_tokens: int, seqlen: int, seed: int) -> CalibrationSet:
    """Read a text file, a .jsonl (`text` or chat `messages`), a folder of them, or a hub dataset into sequences.

    Documents follow each other without padding. Where there are more tokens than `n_tokens`, sequences are chosen
    from the whole text by `seed`; where there are fewer, all are used. Raises UsageError for files that cannot be
    read or hold too little.
    """
    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)
    tokens: list[int] = []
    n_documents = 0
    for document in read_documents(path, make_chat_renderer(checkpoint.tokenizer)):
        tokens.extend(encode(document))
        n_documents += 1
    if len(tokens) < MIN_TOKENS:
        raise UsageError(
            f"{path} holds {len(tokens):,} tokens of text; at least {MIN_TOKENS} are needed to calibrate",
            remedy="give more text, or leave --calib out: the model then writes its own",
        )
    sequences = pack_sequences(np.asarray(tokens, np.int64), seqlen)
    return CalibrationSet(choose_sequences(sequences, n_tokens, seed), describe_source(path), n_documents, len(tokens))


def describe_source(path: Path) -> str:
    """The name under which a calibration text is reported: no path of this machine."""
    return str(path) if str(path).startswith(HUB_SCHEME) else path.name


def make_encoder(tokenizer: TokenizerFiles, config: ModelConfig) -> Encode:
    """A function text → token ids; starts with the BOS token where the model's plain text does."""
    encoder = Tokenizer.from_str(tokenizer.tokenizer_json)
    encoder.no_truncation()
    encoder.no_padding()
    first = [config.bos_token_id] if tokenizer.add_bos_token and config.bos_token_id is not None else []

    def encode(text: str) -> list[int]:
        ids = encoder.encode(text, add_special_tokens=False).ids
        return ids if ids[: len(first)] == first else [*first, *ids]

    return encode


def pack_sequences(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], seqlen: int) -> torch.Tensor:
    """[tokens] → [sequences, seqlen], all tokens used: the last sequence reaches back to be full.

    Fewer tokens than seqlen give one shorter sequence.
    """
    flat = torch.from_numpy(tokens)
    if len(tokens) <= seqlen:
        return flat[None]
    whole = len(tokens) // seqlen
    sequences = flat[: whole * seqlen].view(whole, seqlen)
    if len(tokens) % seqlen:
        sequences = torch.cat((sequences, flat[None, -seqlen:]))
    return sequences


def choose_sequences(sequences: torch.Tensor, n_tokens: int, seed: int) -> torch.Tensor:
    """At most n_tokens' worth of sequences (at least one), chosen by seed, in their order."""
    wanted = max(1, n_tokens // sequences.shape[1])
    if wanted >= len(sequences):
        return sequences
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(sequences), generator=generator)[:wanted].sort().values
    return sequences[chosen]


def read_documents(path: Path, render_chat: RenderChat | None) -> Iterator[str]:
    """Every non-empty document of a file, a folder or a hub dataset; raises UsageError where there is none."""
    found = False
    for document in read_raw_documents(path, render_chat):
        # A lone surrogate, which JSON can write, is no text and no tokenizer takes it.
        clean = document.encode("utf-8", "replace").decode("utf-8")
        if clean.strip():
            found = True
            yield clean
    if not found:
        raise UsageError(f"{path} holds no text", remedy="give a file with text, or leave --calib out")


def read_raw_documents(path: Path, render_chat: RenderChat | None) -> Iterator[str]:
    """Documents as they are, at most MAX_TEXT_BYTES in all."""
    budget = MAX_TEXT_BYTES
    if str(path).startswith(HUB_SCHEME) and not path.exists():
        for document in read_hub_dataset(str(path), render_chat):
            yield document
            budget -= len(document)
            if budget <= 0:
                return
        return
    for file in list_text_files(path):
        if budget <= 0:
            return
        text = read_text(file, budget)
        budget -= len(text)
        yield from read_jsonl(file, text, render_chat) if file.suffix.lower() == JSONL_SUFFIX else (text,)


def list_text_files(path: Path) -> list[Path]:
    """The file itself, or the text files below a folder in a fixed order."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        remedy = "give a text file, a .jsonl or a folder of them"
        if HUB_NAME.fullmatch(str(path)):
            remedy += f"; a data set of the hub is written {HUB_SCHEME}{path}"
        raise UsageError(f"there is no file or folder {path}", remedy=remedy)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in (*TEXT_SUFFIXES, JSONL_SUFFIX)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        known = ", ".join((*TEXT_SUFFIXES, JSONL_SUFFIX))
        raise UsageError(f"the folder {path} holds no text files ({known})", remedy="give the text file itself")
    return files


def read_text(file: Path, limit: int) -> str:
    """At most `limit` bytes of a UTF-8 file as text; raises UsageError where it is none."""
    try:
        with file.open("rb") as stream:
            data = stream.read(limit)
            is_whole = not stream.read(1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error
    if not is_whole:
        # The limit may fall inside a line or a character; what follows the last line break is left.
        data = data[: data.rfind(b"\n") + 1] or data
    try:
        return data.decode("utf-8", "strict" if is_whole else "ignore").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 text (byte {error.start:,} is {data[error.start]:#04x})",
            remedy="convert it to UTF-8, or give another file",
        ) from error


def read_jsonl(file: Path, text: str, render_chat: RenderChat | None) -> Iterator[str]:
    """The document of every line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON: {error}", remedy="write one JSON object a line") from error
        yield read_entry(entry, where, render_chat)
