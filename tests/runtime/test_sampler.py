"""The fast sampler against a plain one that sorts the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.errors import GenerationError, UsageError
from edgeawq.runtime import sampler as sampler_module
from edgeawq.runtime.sampler import SamplerSettings, apply_repetition_penalty, make_sampler, take_largest

INF = float("inf")


def compute_reference(logits: npt.NDArray[np.float32], settings: SamplerSettings) -> npt.NDArray[np.float64]:
    """Probabilities [vocab] after all filters, with a full sort: ties go to the smaller token id."""
    scaled = logits.astype(np.float64) / settings.temperature
    order = np.lexsort((np.arange(len(logits)), -scaled))
    weights = np.exp(scaled[order] - scaled[order[0]])
    if 0 < settings.top_k < len(logits):
        order, weights = order[: settings.top_k], weights[: settings.top_k]
    if settings.top_p < 1:
        n_kept = int(np.searchsorted(np.cumsum(weights), settings.top_p * weights.sum())) + 1
        order, weights = order[:n_kept], weights[:n_kept]
    kept = weights >= settings.min_p
    probabilities = np.zeros(len(logits))
    probabilities[order[kept]] = weights[kept] / weights[kept].sum()
    return probabilities


def measure_distribution(
    logits: npt.NDArray[np.float32], settings: SamplerSettings, n_steps: int = 1000
) -> npt.NDArray[np.float64]:
    """Probabilities [vocab] of the real sampler, read off by walking its one random number through [0, 1)."""
    drawn = [sampler_module._draw_token(logits, settings, (step + 0.5) / n_steps) for step in range(n_steps)]
    return np.bincount(drawn, minlength=len(logits)) / n_steps


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(temperature=1.0),
        SamplerSettings(temperature=0.5),
        SamplerSettings(temperature=1.0, top_k=7),
        SamplerSettings(temperature=1.3, top_p=0.8),
        SamplerSettings(temperature=1.0, min_p=0.1),
        SamplerSettings(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05),
        SamplerSettings(temperature=2.0, top_p=0.95, min_p=0.02),
        SamplerSettings(temperature=1.0, top_p=0.0),
    ],
)
@pytest.mark.parametrize("n_vocab", [1, 2, 63, 130, 5000])
def test_distribution_is_the_reference(settings: SamplerSettings, n_vocab: int) -> None:
    logits = np.random.default_rng().normal(0, 2.5, n_vocab).astype(np.float32)
    expected = compute_reference(logits, settings)
    measured = measure_distribution(logits, settings)
    # float32 may put the cut of top_p one (rare) token earlier or later than float64 does
    assert measured[expected == 0].sum() < 3 / 1000
    assert np.abs(measured - expected).max() < 2 / 1000


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_wide_nucleus_is_the_reference_nucleus(temperature: float) -> None:
    """Flat logits: thousands of tokens are kept, which takes the path without a sort."""
    settings = SamplerSettings(temperature=temperature, top_p=0.9)
    logits = np.random.default_rng().normal(0, 2, 20_000).astype(np.float32)
    expected = compute_reference(logits, settings)
    tokens, weights = sampler_module._find_nucleus(logits, float(logits.max()), 1 / temperature, 0.9)
    assert len(tokens) > sampler_module._FIRST_NUCLEUS
    kept = set(tokens.tolist())
    wanted = set(np.flatnonzero(expected).tolist())
    # float32 sums may put the cut one token earlier or later
    assert len(kept ^ wanted) <= 1
    common = sorted(kept & wanted)
    probability = dict(zip(tokens.tolist(), (weights / weights.sum()).tolist(), strict=True))
    np.testing.assert_allclose([probability[token] for token in common], expected[common], rtol=1e-3)


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 20 000 draws from a fixed seed over the tokens that can come."""
    logits = np.linspace(0, 4, 60).astype(np.float32)
    settings = SamplerSettings(temperature=1.0, top_k=25, seed=1234)
    sample = make_sampler(settings)
    counts = np.bincount([sample(logits, ()) for _ in range(20_000)], minlength=60)
    expected = compute_reference(logits, settings) * 20_000
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = float((((counts - expected) ** 2)[kept] / expected[kept]).sum())
    assert chi_square < 52.6  # 24 degrees of freedom, p = 0.0007; the seed is fixed, so this does not flicker


def test_same_seed_same_tokens_other_seed_other_tokens() -> None:
    logits = np.random.default_rng().normal(0, 1, 1000).astype(np.float32)

    def draw(seed: int) -> list[int]:
        sample = make_sampler(SamplerSettings(temperature=1.5, seed=seed))
        return [sample(logits, ()) for _ in range(50)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


@settings(deadline=None)
@given(
    values=st.lists(
        st.one_of(st.floats(-30, 30, width=32), st.just(-INF), st.sampled_from([0.0, 1.0, 1.0])),
        min_size=1,
        max_size=200,
    ),
    temperature=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    top_k=st.integers(0, 300),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_every_drawn_token_was_possible(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = np.array(values, dtype=np.float32)
    settings = SamplerSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    sample = make_sampler(settings)
    if np.all(np.isneginf(logits)):
        with pytest.raises(GenerationError, match="probability 0"):
            sample(logits, ())
        return
    token = sample(logits, ())
    assert 0 <= token < len(values)
    assert logits[token] > -INF
    if temperature == 0:
        assert token == int(np.argmax(logits))
        return
    # Everything likelier than a token that may come must be fewer than top_k tokens.
    if top_k:
        assert int((logits > logits[token]).sum()) < top_k
    assert math.exp((float(logits[token]) - float(logits.max())) / temperature) >= min_p * (1 - 1e-4)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=700),
    count=st.integers(1, 800),
)
def test_take_largest_breaks_ties_by_index(values: list[int], count: int) -> None:
    array = np.array(values, dtype=np.float32)
    expected = np.lexsort((np.arange(len(array)), -array))[:count]
    assert take_largest(array, count).tolist() == expected.tolist()


@pytest.mark.parametrize("n_vocab", [49152, 151_936, 50_257])
def test_take_largest_in_a_real_vocabulary(n_vocab: int) -> None:
    array = np.random.default_rng().normal(0, 3, n_vocab).astype(np.float32)
    for count in (1, 40, 1000, n_vocab):
        assert take_largest(array, count).tolist() == np.argsort(-array, kind="stable")[:count].tolist()


@pytest.mark.parametrize("bad", [float("nan"), INF])
@pytest.mark.parametrize(
    "settings", [SamplerSettings(), SamplerSettings(temperature=1, top_k=5), SamplerSettings(top_p=0.5)]
)
def test_logits_that_are_no_numbers_are_an_error(bad: float, settings: SamplerSettings) -> None:
    logits = np.zeros(300, dtype=np.float32)
    logits[170] = bad
    with pytest.raises(GenerationError, match="not a number"):
        make_sampler(settings)(logits, ())


def test_repetition_penalty_counts_each_token_once_and_leaves_the_logits_alone() -> None:
    logits = np.array([2.0, -2.0, 0.0, 1.9], dtype=np.float32)
    before = logits.copy()
    penalized = apply_repetition_penalty(logits, [0, 0, 1, 1, 1], 2.0)
    assert penalized.tolist() == [1.0, -4.0, 0.0, np.float32(1.9)]
    assert np.array_equal(logits, before)
    assert make_sampler(SamplerSettings(repetition_penalty=2.0))(logits, [0]) == 3
    assert make_sampler(SamplerSettings(repetition_penalty=2.0))(logits, []) == 0


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", "x"),
    ],
)
def test_settings_that_make_no_sense_name_value_and_limit(field: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        SamplerSettings(**{field: value})  # type: ignore[arg-type]
    assert field in caught.value.what and repr(value) in caught.value.what
    assert caught.value.remedy
