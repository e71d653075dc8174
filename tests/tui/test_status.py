from __future__ import annotations

import pytest

from edgeawq.runtime.stats import GenerationStats
from edgeawq.tui.status import describe_decode


@pytest.mark.parametrize(
    ("n_fewer", "text"),
    [
        (0, "20.0 tokens/s"),
        (1, "20.0 tokens/s, 1 token on fewer threads"),
        (7, "20.0 tokens/s, 7 tokens on fewer threads"),
    ],
)
def test_the_speed_says_when_threads_were_left_out(n_fewer: int, text: str) -> None:
    stats = GenerationStats(
        prompt_tokens=3,
        reused_tokens=0,
        generated_tokens=41,
        prefill_s=0.1,
        decode_s=2.0,
        time_to_first_token_s=0.1,
    )
    assert describe_decode(stats, n_fewer) == text
