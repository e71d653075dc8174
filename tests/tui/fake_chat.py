"""The terminal chat around a fake engine: `python -m tests.tui.fake_chat [DELAY_S] [CONTEXT_LENGTH]`."""

from __future__ import annotations

import os
import sys

from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.session import ChatSession
from edgeawq.tui.app import ChatApp
from edgeawq.tui.plain import run_plain_chat
from tests.runtime.fake_engine import build_fake_engine

TOUR = """## A tour

Paris is the **capital of France**, known for the *Eiffel Tower*. It has a long history, and this paragraph is long \
enough to wrap on every screen that the tests look at, be it wide or narrow.

- first item
- second item, with `code` in it

```python
def greet(name: str) -> str:
    return f"hello, {name}"
```

| city | country |
|------|---------|
| Paris | France |
| Rome | Italy |

Grüße aus Köln 🙂 日本語
"""


def answer(question: str) -> str:
    """What the fake model says."""
    if question.startswith("count "):
        return "\n".join(f"line {index}" for index in range(1, int(question.split()[1]) + 1))
    if question.startswith("words "):
        return " ".join(f"word{index}" for index in range(1, int(question.split()[1]) + 1))
    if question == "tour":
        return TOUR
    if question == "evil":
        return "a\x1b]0;title\x07b\x1b[2Jc"
    return f"You said: {question}"


def main() -> int:
    """Chat until the end of input."""
    delay_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    context_length = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    with build_fake_engine(answer, delay_s=delay_s, context_length=context_length) as engine:
        session, sampler = ChatSession(engine), make_sampler(SamplerSettings())
        if os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
            return run_plain_chat(session, sampler)
        return ChatApp(session, sampler).run()


if __name__ == "__main__":
    raise SystemExit(main())
