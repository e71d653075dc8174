"""Checks of a tokenizer.json before anything relies on it."""

from __future__ import annotations

from tokenizers import Tokenizer

from edgeawq.errors import CheckpointError


def check_tokenizer_json(text: str, where: str) -> str:
    """Return `text` if the `tokenizers` library accepts it; raises CheckpointError naming `where` otherwise."""
    load_tokenizer(text, where)
    return text


def load_tokenizer(text: str, where: str) -> Tokenizer:
    """A tokenizer from the text of its tokenizer.json."""
    try:
        return Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises plain Exception for what it does not like, and some damage makes its Rust code panic, which
    # arrives as a BaseException.
    except BaseException as error:
        raise CheckpointError(
            f"{where} is not one that the `tokenizers` library can read: {error}",
            remedy="get the checkpoint again; if it is newer than your `tokenizers`, run: pip install -U tokenizers",
        ) from error
