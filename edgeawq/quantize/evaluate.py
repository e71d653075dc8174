"""Scoring models on a text against a float reference, in bounded memory.

Of the reference only its last hidden states are kept, in a temporary file: its logits, a hundred times larger, are
made again from them a few positions at a time, beside the other model's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from edgeawq.errors import UsageError
from edgeawq.quantize.llama import normalize
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import OnProgress, StreamedModel, count_head_positions, walk_blocks
from edgeawq.quantize.scores import TokenScores, Windows, join_scores, score_logits

# (token ids of one window, whether a new window begins) → logits [positions, vocab_size] of these positions
FeedTokens = Callable[[list[int], bool], torch.Tensor]


@dataclass(frozen=True)
class ReferenceStates:
    """The reference's hidden states after the final norm at every scored token's predecessor, and its head."""

    states: torch.Tensor  # [scored tokens, hidden_size], backed by a file
    head: torch.Tensor  # [vocab_size, hidden_size]

    def logits(self, first: int, count: int) -> torch.Tensor:
        """Logits [count, vocab_size] from which the scored tokens `first` … are predicted."""
        return self.states[first : first + count] @ self.head.T


@contextmanager
def keep_reference(model: StreamedModel, windows: Windows) -> Iterator[ReferenceStates]:
    """Room for a reference's states in a temporary file, deleted at the end; `score_model` fills it."""
    shape = (windows.n_scored, model.config.hidden_size)
    with tempfile.TemporaryFile(prefix="edgeawq-eval-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * 4)
        except OSError as error:
            raise UsageError(
                f"{shape[0] * shape[1] * 4 / 1e9:.2f} GB cannot be stored in {tempfile.gettempdir()}: "
                f"{error.strerror or error}",
                remedy="evaluate fewer tokens, or point TMPDIR to a disk with room",
            ) from error
        # Read and written like memory; the system writes pages out when it needs the room.
        yield ReferenceStates(torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape)), model.head)


def score_model(
    model: StreamedModel,
    windows: Windows,
    workers: Workers,
    *,
    reference: ReferenceStates | None = None,
    fill: ReferenceStates | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> TokenScores:
    """Score every window's tokens; `reference` to compare with, `fill` to become the reference of later calls.

    One block at a time is in memory, and logits of as many positions as fit into `perplexity.HEAD_VALUES`.
    """
    offsets = windows.offsets()
    parts: list[TokenScores] = []

    def score(task: tuple[int, torch.Tensor]) -> TokenScores:
        number, hidden = task
        first, offset = windows.first_scored[number], offsets[number]
        normed = normalize(hidden[0, first - 1 : -1], model.final_norm, model.config.rms_norm_eps)
        if fill is not None:
            fill.states[offset : offset + len(normed)] = normed
        return score_states(normed, windows.token_ids[number, first:], model.head, reference, offset)

    for start, hidden in walk_blocks(model, windows.token_ids, workers, on_progress):
        parts += workers.run(score, list(enumerate(hidden, start)))
    return join_scores(parts)


def score_states(
    normed: torch.Tensor,
    targets: torch.Tensor,
    head: torch.Tensor,
    reference: ReferenceStates | None,
    offset: int,
) -> TokenScores:
    """Scores of targets [positions] from states [positions, hidden_size]; offset: the first one's among all scored."""
    step = count_head_positions(len(head))
    parts = []
    for first in range(0, len(targets), step):
        part = targets[first : first + step]
        wanted = reference.logits(offset + first, len(part)) if reference is not None else None
        parts.append(score_logits(normed[first : first + step] @ head.T, part, wanted))
    return join_scores(parts)


def score_feeder(
    feed: FeedTokens,
    windows: Windows,
    vocab_size: int,
    *,
    reference: ReferenceStates | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> TokenScores:
    """Score a model that is only known by its logits, such as a bundle in its own runtime; progress in tokens."""
    offsets = windows.offsets()
    step = count_head_positions(vocab_size)
    n_windows, length = windows.token_ids.shape
    parts: list[TokenScores] = []
    for number, tokens in enumerate(windows.token_ids):
        first_scored = windows.first_scored[number]
        for start in range(0, length - 1, step):
            end = min(start + step, length - 1)
            logits = feed(tokens[start:end].tolist(), start == 0)
            skipped = max(0, first_scored - 1 - start)  # of these positions, the ones that only give context
            if skipped < len(logits):
                targets = tokens[start + skipped + 1 : end + 1]
                offset = offsets[number] + start + skipped - (first_scored - 1)
                wanted = reference.logits(offset, len(targets)) if reference is not None else None
                parts.append(score_logits(logits[skipped:], targets, wanted))
            on_progress(number * length + end + 1, n_windows * length)
    return join_scores(parts)
