"""Perplexity of a model on a text, block by block, so that one block at a time is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.model import Checkpoint
from edgeawq.errors import UsageError
from edgeawq.quantize.calibration import make_encoder, read_documents
from edgeawq.quantize.chat_text import make_chat_renderer
from edgeawq.quantize.llama import BlockWeights, make_rope, normalize, read_block, read_weight, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.recipe import find_recipe

CHUNK = 1024
DEFAULT_TOKENS = 12 * CHUNK
MIN_TOKENS = 64
# Logits are taken for this many positions at a time: [positions, vocab_size] floats are the largest tensor.
HEAD_POSITIONS = 256
# Chunks whose hidden states are kept while the blocks pass by.
CHUNKS_IN_MEMORY = 64


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


def stream_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> StreamedModel:
    """A checkpoint, float or quantized, as a model to walk through."""
    find_recipe(checkpoint.config)  # refuses a family that is computed differently
    embedding = read_weight(checkpoint, "model.embed_tokens", dtype)
    tied = checkpoint.config.tie_word_embeddings
    return StreamedModel(
        config=checkpoint.config,
        embedding=embedding,
        final_norm=torch.from_numpy(checkpoint.tensor("model.norm.weight")).to(dtype),
        head=embedding if tied else read_weight(checkpoint, "lm_head", dtype),
        read_block=lambda layer: read_block(checkpoint, layer, dtype),
    )


def read_evaluation_tokens(path: Path, checkpoint: Checkpoint, n_tokens: int) -> torch.Tensor:
    """The first n_tokens of a text as chunks [chunks, CHUNK]; one shorter chunk where there are fewer.

    Documents follow each other. What does not fill a last chunk is left out. Raises UsageError for too little text.
    """
    if n_tokens < MIN_TOKENS:
        raise UsageError(f"{n_tokens} tokens are too few to evaluate; the least is {MIN_TOKENS}")
    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)
    tokens: list[int] = []
    for document in read_documents(path, make_chat_renderer(checkpoint.tokenizer)):
        tokens.extend(encode(document))
        if len(tokens) >= n_tokens:
            break
    tokens = tokens[:n_tokens]
    if len(tokens) < MIN_TOKENS:
        raise UsageError(
            f"{path} holds {len(tokens)} tokens of text; at least {MIN_TOKENS} are needed",
            remedy="give a longer text",
        )
    flat = torch.tensor(tokens)
    whole = len(flat) // CHUNK
    return flat[: whole * CHUNK].view(whole, CHUNK) if whole else flat[None]


def measure_perplexity(
    model: StreamedModel,
    chunks: torch.Tensor,
    workers: Workers,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Perplexity on chunks [chunks, positions], each on its own ("plain", no overlap); progress in blocks."""
    batches = chunks.split(CHUNKS_IN_MEMORY)
    total_steps = len(batches) * (model.config.n_layers + 1)
    rope = make_rope(model.config, chunks.shape[1], model.embedding.dtype)
    losses: list[float] = []
    done = 0
    for batch in batches:
        hidden = [F.embedding(chunk[None], model.embedding) for chunk in batch]
        for layer in range(model.config.n_layers):
            weights = model.read_block(layer)

            def run(state: torch.Tensor, weights: BlockWeights = weights) -> torch.Tensor:
                return run_block(state, weights, model.config, rope)

            hidden = workers.run(run, hidden)
            done += 1
            on_progress(done, total_steps)
        losses += workers.run(lambda pair: sum_losses(model, *pair), list(zip(hidden, batch, strict=True)))
        done += 1
        on_progress(done, total_steps)
    n_tokens = chunks.shape[0] * (chunks.shape[1] - 1)
    mean = float(np.sum(losses)) / n_tokens
    return Perplexity(math.exp(mean) if mean < 700 else math.inf, n_tokens, chunks.shape[1])


def sum_losses(model: StreamedModel, hidden: torch.Tensor, tokens: torch.Tensor) -> float:
    """Sum of the negative log likelihoods of tokens[1:], given hidden [1, positions, hidden_size] after the blocks."""
    normed = normalize(hidden[0, :-1], model.final_norm, model.config.rms_norm_eps)
    total = 0.0
    for states, targets in zip(normed.split(HEAD_POSITIONS), tokens[1:].split(HEAD_POSITIONS), strict=True):
        total += float(F.cross_entropy(states @ model.head.T, targets, reduction="sum"))
    return total
