"""The golden test of a bundle: a fixed prompt, and the tokens that a healthy device answers with.

The reference tokens are fed to the model one by one, and at each step its favourite is compared with the next of
them. So one near tie, which another CPU's rounding may decide the other way, does not spoil the steps behind it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeawq.errors import BundleError, GenerationError
from edgeawq.runtime.chat_template import Message
from packager.manifest_reader import read_manifest

if TYPE_CHECKING:
    from edgeawq.runtime.engine import Engine
    from edgeawq.runtime.generate import DecoderLike
    from edgeawq.runtime.native import NativeKernel

FORMAT_VERSION = 1
PROMPT = "What is the capital of France?"
MAX_TOKENS = 4096
# Two favourites closer than this count as a tie. All instruction sets and numbers of threads add in the same order, so
# the bits are the same; another C library or compiler could still differ in the last ones.
NEAR_TIE_LOGITS = 0.02


@dataclass(frozen=True)
class GoldenResult:
    """Outcome of a golden test; `tokens` are the model's favourites after the prompt and after each expected token."""

    ok: bool
    tokens: tuple[int, ...]
    expected: tuple[int, ...]
    n_near_ties: int  # steps that differ from what is expected by less than a rounding error
    text: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "ok": self.ok,
            "tokens": list(self.tokens),
            "expected": list(self.expected),
            "near_ties": self.n_near_ties,
            "text": self.text,
            "prefill_tokens_per_s": round(self.prefill_tokens_per_s, 2),
            "decode_tokens_per_s": round(self.decode_tokens_per_s, 2),
        }


def record_golden(bundle_dir: Path, n_tokens: int = 16) -> dict[str, Any]:
    """Answer the fixed prompt greedily and return what golden.json holds."""
    from edgeawq.runtime.engine import open_engine

    with open_engine(bundle_dir, n_threads=1, context_length=_choose_context(bundle_dir, n_tokens)) as engine:
        return record_golden_of(engine, n_tokens)


def record_golden_of(engine: Engine, n_tokens: int = 16) -> dict[str, Any]:
    """`record_golden` for an engine that is open; its context is emptied first."""
    text = engine.template.render([Message("user", PROMPT)])
    encode = engine.tokenizer.encode_plain if engine.template.source is None else engine.tokenizer.encode
    prompt_tokens = encode(text)
    engine.decoder.rewind(0)
    expected: list[int] = []
    logits = engine.decoder.forward(prompt_tokens)
    while True:
        token = int(logits.argmax())
        _check_finite(float(logits[token]))
        expected.append(token)
        if len(expected) == n_tokens or token in engine.stop_token_ids:
            break
        logits = engine.decoder.forward([token])
    return {
        "format_version": FORMAT_VERSION,
        "prompt": PROMPT,
        "prompt_tokens": prompt_tokens,
        "expected_tokens": expected,
        "text": engine.tokenizer.decode(expected),
    }


def check_golden(bundle_dir: Path, *, n_threads: int = 0, kernel: NativeKernel | None = None) -> GoldenResult:
    """Run the golden test of a bundle; BundleError when it has none."""
    from edgeawq.runtime.bundle_text import read_json_file
    from edgeawq.runtime.engine import open_engine

    manifest = read_manifest(bundle_dir)
    if manifest.file("golden") is None:
        raise BundleError(
            f"the bundle {bundle_dir} has no golden test", remedy="pack it again on a host that can run it"
        )
    golden = read_json_file(bundle_dir, manifest, "golden")
    prompt_tokens, expected = _read_tokens(golden, "prompt_tokens"), _read_tokens(golden, "expected_tokens")
    if max(*prompt_tokens, *expected) >= manifest.model.vocab_size:
        raise BundleError("golden.json has a token beyond the vocabulary", remedy="pack the bundle again")
    context_length = min(manifest.model.max_position_embeddings, len(prompt_tokens) + len(expected))
    with open_engine(bundle_dir, n_threads=n_threads, context_length=context_length, kernel=kernel) as engine:
        result = run_golden(engine.decoder, prompt_tokens, expected)
        return replace(result, text=engine.tokenizer.decode(result.tokens))


def run_golden(decoder: DecoderLike, prompt_tokens: list[int], expected: list[int]) -> GoldenResult:
    """Compare a decoder's favourites with the expected tokens; its context is emptied first."""
    decoder.rewind(0)
    start = time.perf_counter()
    logits = decoder.forward(prompt_tokens)
    prefill_s = time.perf_counter() - start
    tokens: list[int] = []
    n_wrong = n_near_ties = 0
    start = time.perf_counter()
    for step, wanted in enumerate(expected):
        token = int(logits.argmax())
        if not np.isfinite(logits[token]):
            n_wrong += 1
        elif token != wanted:
            near = float(logits[token] - logits[wanted]) < NEAR_TIE_LOGITS
            n_near_ties += near
            n_wrong += not near
        tokens.append(token)
        if step + 1 < len(expected):
            logits = decoder.forward([wanted])
    decode_s = time.perf_counter() - start
    return GoldenResult(
        ok=n_wrong == 0,
        tokens=tuple(tokens),
        expected=tuple(expected),
        n_near_ties=n_near_ties,
        text="",
        prefill_tokens_per_s=len(prompt_tokens) / prefill_s if prefill_s > 0 else 0.0,
        decode_tokens_per_s=(len(expected) - 1) / decode_s if decode_s > 0 else 0.0,
    )


def _choose_context(bundle_dir: Path, n_tokens: int) -> int:
    # The prompt is short, but some templates put a long system prompt in front of it.
    return min(read_manifest(bundle_dir).model.max_position_embeddings, 1024 + n_tokens)


def _check_finite(logit: float) -> None:
    if not np.isfinite(logit):
        raise GenerationError(f"the model's output is not a number ({logit})", remedy="quantize and pack it again")


def _read_tokens(golden: dict[str, Any], key: str) -> list[int]:
    value = golden.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOKENS:
        raise BundleError(f"golden.json has no list {key!r} of 1 to {MAX_TOKENS} tokens", remedy="pack it again")
    if not all(type(token) is int and token >= 0 for token in value):
        raise BundleError(f"{key!r} in golden.json holds something that is no token id", remedy="pack it again")
    return value
