"""KV caches of system prompts, kept on disk: a second start with the same long prompt reads nothing again.

A file is named by the bundle, the kind of cache and the tokens, so another prompt, template or model never meets it.
It is kept only when asked for (`--cache-prompt`): a prompt of 1000 tokens takes 23 MB for SmolLM2-135M and 500 MB for
a 7B model, which nobody wants on a memory card unasked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeawq.errors import EdgeawqError, UsageError
from edgeawq.runtime.cache_file import find_mismatch, load_cache, read_header, write_cache
from edgeawq.runtime.cache_folder import prune_folder
from edgeawq.runtime.engine import Engine

MAX_FILES = 8  # the prompts that were used last stay
MIN_TOKENS = 32  # reading fewer is as fast as loading them


@dataclass(frozen=True)
class PromptCache:
    """A folder with the caches of prompts."""

    folder: Path

    def restore(self, engine: Engine, tokens: Sequence[int]) -> bool:
        """Fill the decoder's cache with `tokens` if they are kept; a damaged file is removed and counts as absent."""
        path = self._find_path(engine, tokens)
        if len(tokens) < MIN_TOKENS or not path.is_file():
            return False
        try:
            header = read_header(path)
            problem = find_mismatch(
                header, engine.decoder, bundle=engine.bundle_hash, vocab_size=engine.tokenizer.vocab_size
            )
            if problem or header.tokens != tuple(tokens):
                return False
            load_cache(path, header, engine.decoder)
        except EdgeawqError:
            engine.decoder.rewind(0)
            with suppress(OSError):
                path.unlink()
            return False
        with suppress(OSError):
            os.utime(path)
        return True

    def store(self, engine: Engine, tokens: Sequence[int]) -> None:
        """Keep the cache of `tokens`, which are the first ones in the decoder; UsageError when it cannot be written."""
        path = self._find_path(engine, tokens)
        if len(tokens) < MIN_TOKENS or path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"cannot make the folder {self.folder} for --cache-prompt: {error.strerror}",
                remedy="set EDGEAWQ_CACHE to a folder that can be written, or leave --cache-prompt out",
            ) from error
        write_cache(path, engine.decoder, bundle=engine.bundle_hash, tokens=tokens)
        prune_folder(self.folder, "*.kv", MAX_FILES)

    def _find_path(self, engine: Engine, tokens: Sequence[int]) -> Path:
        digest = hashlib.sha256(f"{engine.bundle_hash} {engine.decoder.cache_layout}".encode())
        digest.update(",".join(map(str, tokens)).encode())
        return self.folder / f"{digest.hexdigest()[:40]}.kv"
