"""An engine around the fake decoder that answers with given text."""

from __future__ import annotations

from collections.abc import Callable

from edgeawq.runtime.chat_template import ChatTemplate
from edgeawq.runtime.engine import Engine
from edgeawq.runtime.sampler import SamplerSettings
from edgeawq.runtime.tokenizer import Tokenizer
from tests.runtime.fake_decoder import FakeDecoder
from tests.runtime.tiny_tokenizer import CHATML, build_byte_level_json


def build_fake_engine(
    answer: Callable[[str], str] | None = None, *, context_length: int = 512, delay_s: float = 0.0
) -> Engine:
    """An engine whose answer to a question is `answer(question)`; without `answer` it writes random tokens."""
    tokenizer = Tokenizer.from_json(build_byte_level_json())
    end = tokenizer.token_id("<|im_end|>")
    opening = tokenizer.encode("<|im_start|>assistant\n")
    assert end is not None

    def choose_next(context: tuple[int, ...]) -> int:
        assert answer is not None
        start = _find_last(context, opening) + len(opening)
        question = tokenizer.decode(context[: start - len(opening)], skip_special=False)
        question = question.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        wanted = [*tokenizer.encode(answer(question)), end]
        return wanted[min(len(context) - start, len(wanted) - 1)]

    decoder = FakeDecoder(
        tokenizer.vocab_size,
        context_length=context_length,
        choose_next=choose_next if answer is not None else None,
        delay_s=delay_s,
    )
    return Engine(
        decoder=decoder,
        tokenizer=tokenizer,
        template=ChatTemplate(CHATML),
        sampling=SamplerSettings(),
        stop_token_ids=frozenset({end}),
        model_name="tiny-fake",
        device_name="pi4",
        bundle_hash="ab" * 32,
    )


def _find_last(context: tuple[int, ...], part: list[int]) -> int:
    for start in range(len(context) - len(part), -1, -1):
        if list(context[start : start + len(part)]) == part:
            return start
    return 0
