"""Drafts change the speed, never the answer: the same tokens for a seed, and the same distribution over seeds."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgeawq.runtime import generate as generate_module
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.generate import Piece, generate
from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.speculate import LONG_DRAFT, SHORT_DRAFT, NgramDrafter
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.fake_engine import build_fake_engine
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model

ENGINE = build_fake_engine(None)


def run(
    decoder: FakeDecoder | Decoder, prompt: Sequence[int], settings: SamplerSettings, **options: object
) -> list[Piece]:
    sampler = make_sampler(settings)
    return list(generate(decoder, ENGINE.tokenizer, prompt, sampler, **options))  # type: ignore[arg-type]


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


class OneDraft:
    """Proposes the same tokens at every step."""

    def __init__(self, draft: list[int]) -> None:
        self._draft = draft

    def push(self, token: int) -> None:
        pass

    def propose(self, limit: int) -> list[int]:
        return self._draft[:limit]


def test_the_longest_and_newest_match_gives_the_draft() -> None:
    drafter = NgramDrafter([1, 2, 3, 40, 41, 42, 9, 1, 2, 3, 50, 51, 52, 8, 3, 60, 61, 62, 1, 2, 3])
    assert drafter.propose(10) == [50, 51, 52]
    assert drafter.propose(2) == [50, 51]
    assert drafter.propose(0) == []
    assert NgramDrafter([1, 2, 3, 4]).propose(10) == []
    assert NgramDrafter([]).propose(10) == []


def test_a_draft_goes_on_where_the_text_ends() -> None:
    assert NgramDrafter([5, 6, 5, 6, 5]).propose(10) == [6, 5, 6]
    assert NgramDrafter([7, 7, 7, 7]).propose(10) == [7, 7, 7]


def test_drafts_that_never_come_true_are_soon_given_up() -> None:
    rng = random.Random()
    drafter = NgramDrafter([1, 2, 3, 4] * 3)
    n_tried = 0
    for step in range(300):
        n_tried += bool(drafter.propose(10))
        for token in (1, 2, 3) if step % 2 else (1000 + rng.randrange(10**6),):  # the match is there, its end is new
            drafter.push(token)
    assert n_tried <= 5


def test_a_text_that_begins_to_repeat_itself_is_noticed_and_then_drafted_far_ahead() -> None:
    drafter = NgramDrafter(range(100))
    for _ in range(200):  # nothing is drafted from text that does not repeat itself
        drafter.push(random.randrange(1000, 10**9))
        drafter.propose(10)
    text, at, lengths = list(range(500, 540)) * 12, 0, []
    while at < len(text) - 10:
        draft = drafter.propose(10)
        lengths.append(len(draft))
        n_right = next((i for i, token in enumerate(draft) if token != text[at + i]), len(draft))
        for token in text[at : at + n_right + 1]:
            drafter.push(token)
        at += n_right + 1
    assert lengths[:40] == [0] * 40
    assert SHORT_DRAFT in lengths and lengths[-10:] == [LONG_DRAFT] * 10


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(),
        SamplerSettings(temperature=0.3, seed=1),
        SamplerSettings(temperature=1.0, top_k=3, top_p=0.9, min_p=0.05, repetition_penalty=1.3, seed=2),
    ],
)
@pytest.mark.parametrize("draft", [[1], [2, 3, 1], [1, 1, 1, 1, 1, 1, 1]])
def test_the_same_tokens_as_without_drafts(
    settings: SamplerSettings, draft: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "NgramDrafter", lambda tokens: OneDraft(draft))
    prompt = np.random.default_rng().integers(0, 4, 6).tolist()
    plain, fast = (FakeDecoder(4, context_length=100) for _ in range(2))
    expected = run(plain, prompt, settings, max_new_tokens=60)
    pieces = run(fast, prompt, settings, max_new_tokens=60, speculate=True)
    assert tokens_of(pieces) == tokens_of(expected)
    assert "".join(piece.text for piece in pieces) == "".join(piece.text for piece in expected)
    assert fast.context == plain.context  # what is left in the cache is the text, without its newest token
    stats = pieces[-1].stats
    assert stats.drafted_tokens > 0
    # every step gives one token and those accepted; the last step may be cut short
    assert stats.generated_tokens == 60 and stats.accepted_tokens == 60 - len(fast.calls)
    assert 0 <= stats.acceptance <= 1


def test_an_accepted_draft_saves_steps() -> None:
    decoder = FakeDecoder(50, choose_next=lambda context: len(context) % 5)
    pieces = run(decoder, [0, 1, 2, 3, 4] * 3, SamplerSettings(), max_new_tokens=100, speculate=True)
    assert tokens_of(pieces) == [i % 5 for i in range(15, 115)]
    assert len(decoder.calls) < 30
    stats = pieces[-1].stats
    assert stats.acceptance == 1.0 and stats.accepted_tokens > 70


@pytest.mark.parametrize("room", [1, 2, 3, 4, 5, 9])
def test_drafts_stay_inside_the_context_and_the_answers_length(room: int) -> None:
    prompt = [0, 1, 2, 3, 4] * 3
    for limits in ({"context_length": 15 + room}, {"context_length": 100, "max_new_tokens": room + 1}):
        decoder = FakeDecoder(50, context_length=limits.pop("context_length"), choose_next=lambda c: len(c) % 5)
        pieces = run(decoder, prompt, SamplerSettings(), speculate=True, **limits)
        assert len(tokens_of(pieces)) == room + 1
        assert pieces[-1].finish_reason == ("length" if limits else "context")
        assert decoder.position == 15 + room


@pytest.mark.parametrize("n_taken", range(1, 9))
def test_a_reader_that_goes_away_leaves_no_draft_in_the_cache(n_taken: int) -> None:
    decoder = FakeDecoder(50, choose_next=lambda context: len(context) % 5)
    prompt = [0, 1, 2, 3, 4] * 3
    pieces = generate(decoder, ENGINE.tokenizer, prompt, make_sampler(SamplerSettings()), speculate=True)
    taken = [next(pieces).token_ids[0] for _ in range(n_taken)]
    pieces.close()  # type: ignore[attr-defined]
    assert decoder.context == [*prompt, *taken[:-1]]


def test_a_stop_token_inside_a_draft_ends_the_answer() -> None:
    decoder = FakeDecoder(50, choose_next=lambda context: 9 if len(context) == 21 else len(context) % 5)
    prompt = [0, 1, 2, 3, 4] * 3
    pieces = run(decoder, prompt, SamplerSettings(), stop_token_ids=frozenset({9}), speculate=True)
    assert tokens_of(pieces) == [0, 1, 2, 3, 4, 0, 9] and pieces[-1].finish_reason == "stop"
    assert decoder.context == [*prompt, 0, 1, 2, 3, 4, 0]


# --- the distribution of sampled answers ------------------------------------------------------------------------------

SETTINGS = SamplerSettings(temperature=0.9, top_k=5, top_p=0.95, min_p=0.02, repetition_penalty=1.4)
PROMPT = [0, 1, 2]
DRAFT = [3, 3]
N_DRAWS = 4000


class TableDecoder(FakeDecoder):
    """Logits that depend on the newest token."""

    def __init__(self, table: npt.NDArray[np.float32]) -> None:
        super().__init__(table.shape[0])
        self._table = table

    def logits_of(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        return self._table[context[-1]]


def probabilities(logits: npt.NDArray[np.float32], history: Sequence[int]) -> npt.NDArray[np.float64]:
    """What `SETTINGS` mean, written down plainly."""
    scores = logits.astype(np.float64)
    for token in set(history):
        scores[token] *= SETTINGS.repetition_penalty if scores[token] < 0 else 1 / SETTINGS.repetition_penalty
    weights = np.exp(scores / SETTINGS.temperature)
    order = np.argsort(-weights)[: SETTINGS.top_k]
    kept = weights[order]
    kept = kept[: int(np.searchsorted(np.cumsum(kept), SETTINGS.top_p * kept.sum())) + 1]
    kept = kept[kept >= SETTINGS.min_p * kept[0]]
    result = np.zeros(len(weights))
    result[order[: len(kept)]] = kept / kept.sum()
    return result


def exact_distribution(table: npt.NDArray[np.float32]) -> dict[tuple[int, ...], float]:
    """The probability of every answer of three tokens."""
    result = {}
    for answer in itertools.product(range(len(table)), repeat=3):
        text, chance = list(PROMPT), 1.0
        for token in answer:
            chance *= probabilities(table[text[-1]], text)[token]
            text.append(token)
        result[answer] = chance
    return result


def excess(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square in standard deviations above its mean; answers that are hardly expected are pooled."""
    if any(expected[answer] == 0 for answer in counts):
        return float("inf")  # the filters rule this answer out
    n_draws = sum(counts.values())
    common = [answer for answer, chance in expected.items() if chance * n_draws >= 5]
    observed = np.array([counts[answer] for answer in common], dtype=np.float64)
    wanted = np.array([expected[answer] * n_draws for answer in common])
    rest = n_draws - wanted.sum()
    chi = float(((observed - wanted) ** 2 / wanted).sum())
    n_cells = len(common)
    if rest >= 5:
        chi += (n_draws - observed.sum() - rest) ** 2 / rest
        n_cells += 1
    return (chi - (n_cells - 1)) / (2 * (n_cells - 1)) ** 0.5


def test_sampled_answers_keep_their_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "NgramDrafter", lambda tokens: OneDraft(DRAFT))
    rng = np.random.default_rng()
    # mostly positive, so that the penalty makes a large difference
    table = rng.normal(3, 1, (6, 6)).astype(np.float32)
    table[:, DRAFT[0]] = table.max(axis=1) - 0.3  # the draft is often right and often wrong
    decoder, sampler = TableDecoder(table), make_sampler(SETTINGS)
    expected = exact_distribution(table)
    counts: Counter[tuple[int, ...]] = Counter()
    n_accepted = n_drafted = 0
    for _ in range(N_DRAWS):
        decoder.rewind(0)
        pieces = list(generate(decoder, ENGINE.tokenizer, PROMPT, sampler, max_new_tokens=3, speculate=True))
        counts[tuple(tokens_of(pieces))] += 1
        n_accepted += pieces[-1].stats.accepted_tokens
        n_drafted += pieces[-1].stats.drafted_tokens
    assert 0.1 < n_accepted / n_drafted < 0.9
    assert excess(counts, expected) < 7  # once in 10^8 runs by chance

    # The same statistic sees the usual mistakes: drawing again from all tokens after a refusal, a penalty that does
    # not count the draft, and the logits of the neighbouring row.
    for mistake in (redraw_from_all, forget_the_draft, use_the_row_before):
        wrong = Counter(mistake(table, rng) for _ in range(N_DRAWS))
        assert excess(wrong, expected) > 14, mistake.__name__


def redraw_from_all(table: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[int, ...]:
    text = list(PROMPT)
    for index in range(3):
        chances = probabilities(table[text[-1]], text)
        is_accepted = index > 0 and rng.random() < chances[DRAFT[0]]
        text.append(DRAFT[0] if is_accepted else int(rng.choice(6, p=chances)))
    return tuple(text[3:])


def forget_the_draft(table: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[int, ...]:
    text = list(PROMPT)
    for _ in range(3):
        text.append(int(rng.choice(6, p=probabilities(table[text[-1]], PROMPT))))
    return tuple(text[3:])


def use_the_row_before(table: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[int, ...]:
    text = list(PROMPT)
    for index in range(3):
        text.append(int(rng.choice(6, p=probabilities(table[text[-1 - (index == 2)]], text))))
    return tuple(text[3:])


# --- the real decoder -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_for_host(make_tiny_model(7), tmp_path_factory.mktemp("bundle") / "tiny.edgeawq")


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("before", [1, 60, 127])
def test_rows_of_a_step_have_the_bits_of_single_steps(bundle: Path, activations: str, count: int, before: int) -> None:
    """However many threads there are: whatever is checked in one step is what decoding would have given."""
    results = []
    for n_threads in (1, 2, 3):
        with Decoder.open(bundle, n_threads=n_threads, activations=activations) as decoder:  # type: ignore[arg-type]
            if not results:
                tokens = np.random.default_rng().integers(0, decoder.config.vocab_size, before + count).tolist()
            decoder.forward(tokens[:before])
            results.append(np.stack([decoder.forward([token]).copy() for token in tokens[before:]]))
            decoder.rewind(before)
            results.append(decoder.forward_draft(tokens[before:]).copy())
            assert decoder.position == before + count
    for rows in results[1:]:
        assert np.array_equal(rows, results[0])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_real_model_gives_the_same_tokens(bundle: Path, temperature: float) -> None:
    settings = SamplerSettings(temperature=temperature, top_k=20, seed=4)
    with Decoder.open(bundle, n_threads=2) as decoder:
        pattern = np.random.default_rng().integers(0, min(400, decoder.config.vocab_size), 8).tolist()
        expected = tokens_of(run(decoder, pattern * 4, settings, max_new_tokens=150))
        decoder.rewind(0)
        pieces = run(decoder, pattern * 4, settings, max_new_tokens=150, speculate=True)
        assert tokens_of(pieces) == expected
        if temperature == 0:  # a tiny model soon repeats itself
            assert pieces[-1].stats.accepted_tokens > 0
