"""The text of one answer and the decoder's window on it: drafts that run ahead, and what happens when it is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgeawq.runtime.speculate import NgramDrafter

if TYPE_CHECKING:
    from edgeawq.runtime.generate import DecoderLike

FloatArray = npt.NDArray[np.float32]

# Tokens from the start that a shift always keeps: attention rests on the first ones whatever they say (Xiao et al.,
# Efficient Streaming Language Models with Attention Sinks, 2023).
N_SINKS = 4


class Window:
    """The tokens of a text, all but the newest in the decoder's cache, and the logits after it.

    Behind the newest token the cache may hold a draft that is not part of the text yet; `close` takes it away.
    """

    def __init__(self, decoder: DecoderLike, tokens: Sequence[int], logits: FloatArray, drafter: NgramDrafter | None):
        """`tokens` are in the decoder's cache, `logits` [vocab] come after them."""
        self.n_read = decoder.position  # tokens in the cache that are part of the text
        self._decoder = decoder
        self._drafter = drafter
        self._text = np.empty(max(decoder.context_length, len(tokens)) + 1, dtype=np.int32)
        self._text[: len(tokens)] = tokens
        self._n_text = len(tokens)
        self._rows = logits[np.newaxis]  # [draft + 1, vocab]: the logits after each token of the draft
        self._row = 0
        self._draft: list[int] = []
        self._is_drafted = False  # whether the newest token is in the cache already

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """The text so far, as a view."""
        return self._text[: self._n_text]

    @property
    def logits(self) -> FloatArray:
        """What the model expects after the text: float32 [vocab]."""
        logits: FloatArray = self._rows[self._row]
        return logits

    @property
    def is_full(self) -> bool:
        """Whether the newest token has no room in the cache."""
        return self.n_read >= self._decoder.context_length

    def append(self, token: int) -> bool:
        """Add the next token; True when the draft had it."""
        self._is_drafted = self._row < len(self._draft) and self._draft[self._row] == token
        self._text[self._n_text] = token
        self._n_text += 1
        if self._drafter is not None:
            self._drafter.push(token)
        return self._is_drafted

    def advance(self, n_left: int) -> int:
        """Read the newest token, with a draft of at most `n_left` tokens behind it; returns how long the draft is."""
        self.n_read += 1
        if self._is_drafted:
            self._row += 1
            return 0
        self._decoder.rewind(self.n_read - 1)
        room = min(n_left, self._decoder.context_length - self.n_read)
        self._draft = self._drafter.propose(room) if self._drafter is not None else []
        newest = int(self._text[self._n_text - 1])
        if self._draft:
            self._rows = self._decoder.forward_draft([newest, *self._draft])
        else:
            self._rows = self._decoder.forward([newest])[np.newaxis]
        self._row = 0
        return len(self._draft)

    def shift(self, n_keep: int, read: Callable[[list[int]], FloatArray | None]) -> list[int]:
        """Keep the first tokens, drop the older half of the others and read what is left, the newest token with it.

        `read` passes tokens to the decoder and returns the logits after them, None when it was interrupted.
        Returns the tokens that are left. The cache is then what a fresh decoder has after these tokens: nothing in it
        depends on what was dropped.
        """
        kept, n_same = choose_kept(self.tokens.tolist(), n_keep, self._decoder.context_length)
        self._decoder.rewind(min(n_same, self._decoder.position))
        logits = read(kept[self._decoder.position :])
        if logits is not None:
            self._rows = logits[np.newaxis]
        self._row, self._draft, self._is_drafted = 0, [], False
        self._text[: len(kept)] = kept
        self._n_text = len(kept)
        self.n_read = self._decoder.position
        return kept

    def close(self) -> None:
        """Leave nothing in the cache that is not part of the text."""
        self._decoder.rewind(min(self._decoder.position, self.n_read))


def choose_kept(tokens: list[int], n_keep: int, context_length: int) -> tuple[list[int], int]:
    """(the first `n_keep` tokens and the newer half of the rest, how many the first ones are).

    The first ones may take half of the context at most, so that there is always something to drop.
    """
    n_keep = min(n_keep, context_length // 2)
    n_dropped = (len(tokens) - n_keep + 1) // 2
    return tokens[:n_keep] + tokens[n_keep + n_dropped :], n_keep
