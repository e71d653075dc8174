"""Perplexity of a model on a text, block by block, so that one block at a time is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.errors import UsageError
from edgeawq.quantize.calibration import Encode, make_encoder, read_documents
from edgeawq.quantize.chat_text import RenderChat, make_chat_renderer
from edgeawq.quantize.llama import BlockWeights, make_rope, normalize, read_block, read_weight, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import find_recipe

CHUNK = 1024
DEFAULT_TOKENS = 12 * CHUNK
MIN_TOKENS = 64
# Logits [positions, vocab_size] are the largest tensor; as many positions at a time as fit into this many values.
HEAD_VALUES = 1 << 22
# Chunks whose hidden states are kept while the blocks pass by.
CHUNKS_IN_MEMORY = 64

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood of every token but the first of each chunk."""

    perplexity: float
    n_tokens: int  # predicted ones
    chunk: int


@dataclass(frozen=True)
class StreamedModel:
    """A model whose blocks are read when they are needed."""

    config: ModelConfig
    embedding: torch.Tensor  # [vocab_size, hidden_size]
    final_norm: torch.Tensor  # [hidden_size]
    head: torch.Tensor  # [vocab_size, hidden_size]
    read_block: Callable[[int], BlockWeights]


def stream_model(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> StreamedModel:
    """A checkpoint, float or quantized, as a model to walk through."""
    find_recipe(checkpoint.config)  # refuses a family that is computed differently
    embedding = read_weight(checkpoint, "model.embed_tokens", dtype, device)
    tied = checkpoint.config.tie_word_embeddings
    return StreamedModel(
        config=checkpoint.config,
        embedding=embedding,
        final_norm=read_weight(checkpoint, "model.norm", dtype, device),
        head=embedding if tied else read_weight(checkpoint, "lm_head", dtype, device),
        read_block=lambda layer: read_block(checkpoint, layer, dtype, device),
    )


def read_tokens(path: Path, checkpoint: Checkpoint, n_tokens: int) -> torch.Tensor:
    """The first n_tokens of a text, its documents one after another; raises UsageError for too little text."""
    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)
    return encode_text(path, encode, make_chat_renderer(checkpoint.tokenizer), n_tokens)


def encode_text(path: Path, encode: Encode, render_chat: RenderChat | None, n_tokens: int) -> torch.Tensor:
    """`read_tokens` with a tokenizer of one's own."""
    if n_tokens < MIN_TOKENS:
        raise UsageError(f"{n_tokens} tokens are too few to evaluate; the least is {MIN_TOKENS}")
    tokens: list[int] = []
    for document in read_documents(path, render_chat):
        tokens.extend(encode(document))
        if len(tokens) >= n_tokens:
            break
    tokens = tokens[:n_tokens]
    if len(tokens) < MIN_TOKENS:
        raise UsageError(
            f"{path} holds {len(tokens)} tokens of text; at least {MIN_TOKENS} are needed",
            remedy="give a longer text",
        )
    return torch.tensor(tokens)


def read_evaluation_tokens(path: Path, checkpoint: Checkpoint, n_tokens: int) -> torch.Tensor:
    """The first n_tokens of a text as chunks [chunks, CHUNK]; one shorter chunk where there are fewer.

    Documents follow each other. What does not fill a last chunk is left out. Raises UsageError for too little text.
    """
    flat = read_tokens(path, checkpoint, n_tokens)
    whole = len(flat) // CHUNK
    return flat[: whole * CHUNK].view(whole, CHUNK) if whole else flat[None]


def measure_perplexity(
    model: StreamedModel,
    chunks: torch.Tensor,
    workers: Workers,
    on_progress: OnProgress = lambda done, total: None,
) -> Perplexity:
    """Perplexity on chunks [chunks, positions], each on its own ("plain", no overlap); progress in blocks."""
    losses: list[float] = []
    for first, hidden in walk_blocks(model, chunks, workers, on_progress):
        batch = chunks[first : first + len(hidden)].to(model.embedding.device)
        losses += workers.run(lambda pair: sum_losses(model, *pair), list(zip(hidden, batch, strict=True)))
    n_tokens = chunks.shape[0] * (chunks.shape[1] - 1)
    return Perplexity(exponentiate(float(np.sum(losses)) / n_tokens), n_tokens, chunks.shape[1])


def walk_blocks(
    model: StreamedModel, chunks: torch.Tensor, workers: Workers, on_progress: OnProgress
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Hidden states after the last block, before the final norm, for CHUNKS_IN_MEMORY chunks at a time.

    Yields the number of the first chunk and a tensor [1, positions, hidden_size] for each. on_progress gets a step
    for every block, and one for what the caller does with the states.
    """
    batches = chunks.split(CHUNKS_IN_MEMORY)
    total = len(batches) * (model.config.n_layers + 1)
    rope = make_rope(model.config, chunks.shape[1], model.embedding.dtype, device=model.embedding.device)
    done = 0
    for number, batch in enumerate(batches):
        hidden = [F.embedding(chunk[None].to(model.embedding.device), model.embedding) for chunk in batch]
        for layer in range(model.config.n_layers):
            weights = model.read_block(layer)

            def run(state: torch.Tensor, weights: BlockWeights = weights) -> torch.Tensor:
                return run_block(state, weights, model.config, rope)

            hidden = workers.run(run, hidden)
            del weights, run  # or this block would still be there while the next is read
            done += 1
            on_progress(done, total)
        yield number * CHUNKS_IN_MEMORY, hidden
        done += 1
        on_progress(done, total)


def sum_losses(model: StreamedModel, hidden: torch.Tensor, tokens: torch.Tensor) -> float:
    """Sum of the negative log likelihoods of tokens[1:], given hidden [1, positions, hidden_size] after the blocks."""
    normed = normalize(hidden[0, :-1], model.final_norm, model.config.rms_norm_eps)
    step = count_head_positions(len(model.head))
    total = 0.0
    for states, targets in zip(normed.split(step), tokens[1:].split(step), strict=True):
        total += float(F.cross_entropy(states @ model.head.T, targets, reduction="sum"))
    return total


def count_head_positions(vocab_size: int) -> int:
    """Positions whose logits are taken at a time."""
    return max(1, HEAD_VALUES // vocab_size)


def exponentiate(mean_loss: float) -> float:
    """Perplexity of a mean negative log likelihood in nats; infinite where a float cannot hold it."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf
