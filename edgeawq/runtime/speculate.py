"""Drafts for speculative decoding without a draft model: what followed the same few tokens before.

The text so far (prompt and answer) is searched for the newest earlier place that ends in the same three, two or one
tokens; what came after it is the draft. The decoder reads the newest token and the draft in one step, which costs much
less than one step a token because the weights are read once, and the sampler decides token by token whether the draft
was right. Source: Saxena, Prompt Lookup Decoding (2023).

The sampler is asked at every position exactly as without a draft, and a draft token stays only when it is the very
token that was drawn. For a draft that is certain of its token this is speculative sampling (Leviathan et al., 2023,
section 2.3): token x is kept with probability p(x), and otherwise the draw comes from p without x, rescaled. It also
takes one random number a token, so a seed gives the same answer with and without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_MATCH = 3  # tokens that must agree; longer matches find nothing better in chat answers, only later
# Drafts that fill the kernels' groups of four tokens together with the token before them. A step of 4 tokens costs
# about 1.5 steps of one, a step of 8 about 3 (docs/chat.md says how this was measured).
SHORT_DRAFT = 3
LONG_DRAFT = 7
# A draft is tried when this many of its first three tokens were right lately: one pays for the step with a margin.
ENOUGH_ACCEPTED = 1.0
ENOUGH_FOR_LONG = 2.7
_MEMORY = 1 / 8  # weight of the newest draft in the running mean
# What is expected of a match of 1, 2, 3 tokens before anything was seen: only the longest is tried at once.
_FIRST_GUESS = (0.25, 0.75, 1.5)


class NgramDrafter:
    """Proposes drafts while they come true.

    Every draft is compared with what the model writes, whether it was tried or not, and only a tried one costs
    anything. So a text that does not repeat itself is decoded at its usual speed, and one that begins to is noticed.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → index of the token after its newest occurrence
        self._found: list[int | None] = [None] * LONGEST_MATCH  # the same for the n-grams that end the text
        self._accepted = list(_FIRST_GUESS)  # running mean of accepted draft tokens (0 … 3), by length of the match
        self._watched: list[int] = []  # the draft that is being compared with the text …
        self._watched_match = 0  # … the length of its match …
        self._n_right = 0  # … and how many of its tokens have come
        for token in tokens:
            self._append(int(token))

    def push(self, token: int) -> None:
        """Take the next token of the text."""
        if self._watched:
            self._compare(token)
        self._append(token)

    def propose(self, limit: int) -> list[int]:
        """The tokens that may come next, at most `limit`; empty when a draft is not worth its step."""
        match = next((n for n in range(LONGEST_MATCH, 0, -1) if self._found[n - 1] is not None), 0)
        if not match or limit < 1:
            return []
        expected = self._accepted[match - 1]
        is_tried = expected >= ENOUGH_ACCEPTED
        if self._watched and not is_tried:
            return []
        draft = self._copy_from(self._found[match - 1] or 0, LONG_DRAFT if expected >= ENOUGH_FOR_LONG else SHORT_DRAFT)
        self._watched, self._watched_match, self._n_right = draft[:SHORT_DRAFT], match, 0
        return draft[:limit] if is_tried else []

    def _append(self, token: int) -> None:
        tokens = self._tokens
        tokens.append(token)
        for n in range(1, min(LONGEST_MATCH, len(tokens)) + 1):
            gram = tuple(tokens[-n:])
            self._found[n - 1] = self._after.get(gram)
            self._after[gram] = len(tokens)

    def _copy_from(self, start: int, count: int) -> list[int]:
        """`count` tokens from `start` on; where the text ends, the draft itself goes on."""
        draft: list[int] = []
        for index in range(start, start + count):
            inside = index < len(self._tokens)
            draft.append(self._tokens[index] if inside else draft[index - len(self._tokens)])
        return draft

    def _compare(self, token: int) -> None:
        is_right = token == self._watched[self._n_right]
        self._n_right += is_right
        if not is_right or self._n_right == len(self._watched):
            mean = self._accepted[self._watched_match - 1]
            self._accepted[self._watched_match - 1] = mean + _MEMORY * (self._n_right - mean)
            self._watched = []
