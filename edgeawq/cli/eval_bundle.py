"""A bundle in its own runtime as a model that `edgeawq eval` can score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeawq.errors import UsageError

if TYPE_CHECKING:
    import torch

    from edgeawq.quantize.evaluate import FeedTokens, ReferenceStates
    from edgeawq.quantize.perplexity import OnProgress
    from edgeawq.quantize.scores import TokenScores, Windows
    from edgeawq.quantize.storage import Storage
    from edgeawq.runtime.engine import Engine

MANIFEST = "manifest.json"


def is_bundle(reference: str) -> bool:
    """Whether a model reference is a bundle folder."""
    return (Path(reference).expanduser() / MANIFEST).is_file()


def check_bundle(reference: str, chunk: int) -> None:
    """Raise, before any work is done, where a bundle cannot be read or its context is shorter than a window."""
    from packager.manifest_reader import read_manifest

    longest = read_manifest(Path(reference).expanduser()).model.max_position_embeddings
    if chunk > longest:
        raise UsageError(
            f"windows of {chunk} tokens do not fit into the context of {reference}, {longest}",
            remedy=f"give --chunk {longest} or less",
        )


def open_bundle_engine(reference: str, chunk: int, threads: int) -> Engine:
    """The bundle with a context of one window."""
    from edgeawq.runtime.engine import open_engine

    return open_engine(Path(reference).expanduser(), n_threads=threads, context_length=chunk)


def read_bundle_tokens(engine: Engine, text: Path, n_tokens: int) -> torch.Tensor:
    """The first n_tokens of a text, by the bundle's own tokenizer and chat template."""
    from edgeawq.quantize.chat_text import Message as Turn
    from edgeawq.quantize.perplexity import encode_text
    from edgeawq.runtime.chat_template import Message

    def render(turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
        return engine.template.render(messages, add_generation_prompt=add_generation_prompt)

    return encode_text(text, engine.tokenizer.encode_plain, render, n_tokens)


def score_bundle(
    engine: Engine, windows: Windows, reference: ReferenceStates | None, on_progress: OnProgress
) -> TokenScores:
    """Score windows with the runtime's own arithmetic (int8 activations where that is its default)."""
    from edgeawq.quantize.evaluate import score_feeder
    from edgeawq.runtime.decoder import Decoder

    decoder = engine.decoder
    assert isinstance(decoder, Decoder)
    return score_feeder(
        make_feeder(decoder), windows, decoder.config.vocab_size, reference=reference, on_progress=on_progress
    )


def make_feeder(decoder: object) -> FeedTokens:
    """A function that appends tokens to the decoder's context and returns the logits after each."""
    import torch

    from edgeawq.runtime.decoder import Decoder

    assert isinstance(decoder, Decoder)

    def feed(tokens: list[int], is_new: bool) -> torch.Tensor:
        if is_new:
            decoder.rewind(0)
        return torch.from_numpy(decoder.forward_all(tokens))

    return feed


def measure_bundle_storage(reference: str) -> Storage:
    """Size of a bundle's weights; bits per weight are those of the blocks' linear layers as they are stored."""
    from edgeawq.quantize.storage import Storage
    from packager.manifest_reader import read_manifest

    manifest = read_manifest(Path(reference).expanduser())
    linears = [tensor for tensor in manifest.tensors if tensor.kind == "linear"]
    body = [tensor for tensor in linears if tensor.name.startswith("layers.")]
    sizes = [tensor.out_features * tensor.in_features for tensor in body]
    return Storage(
        n_weights=sum(tensor.out_features * tensor.in_features for tensor in linears),
        bits=sum(size * tensor.bits for size, tensor in zip(sizes, body, strict=True)) / sum(sizes),
        bits_per_weight=8 * sum(tensor.nbytes for tensor in body) / sum(sizes),
        file_bytes=sum(file.size for file in manifest.files if file.role == "weights"),
    )
