"""Chat messages to one prompt text, with the model's own Jinja template, rendered as Hugging Face renders it.

A template comes with the weights, from whoever made the model, so it is treated as foreign code: an immutable
sandbox, a bounded source, and bounds on loop steps, time and text (see `template_sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from edgeawq.errors import GenerationError

if TYPE_CHECKING:
    from edgeawq.runtime.template_sandbox import CompiledTemplate

ROLES = ("system", "user", "assistant")

# What a model without a template is given: one "Role: text" paragraph per message. The model would go on to write
# the person's next turn itself, so that is where its answer is cut.
PLAIN_STOP_STRINGS = ("\nUser:", "\nSystem:")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written down for one model; `source` None means the plain format of `render_plain`."""

    source: str | None
    bos_token: str = ""
    eos_token: str = ""
    extra_tokens: Mapping[str, str] = field(default_factory=dict)  # other names a template may use, such as pad_token

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end an answer because of the format itself."""
        return PLAIN_STOP_STRINGS if self.source is None else ()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt text for `messages`; with `add_generation_prompt` it ends where the answer begins.

        Raises GenerationError when the template fails, refuses the messages, or passes its bounds.
        """
        for message in messages:
            if message.role not in ROLES:
                raise GenerationError(
                    f"unknown role {message.role!r} in a conversation", remedy=f"use one of {', '.join(ROLES)}"
                )
        if self.source is None:
            return render_plain(messages, add_generation_prompt=add_generation_prompt)
        return self._compiled.render(
            {
                **self.extra_tokens,
                "messages": [{"role": message.role, "content": message.content} for message in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
            }
        )

    @cached_property
    def _compiled(self) -> CompiledTemplate:
        # Jinja2 costs 60 ms to import; a model without a template does not pay for it.
        from edgeawq.runtime.template_sandbox import compile_template

        assert self.source is not None
        return compile_template(self.source)


def render_plain(messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """The format for a model without a chat template: "User: …", "Assistant: …", separated by an empty line."""
    parts = [f"{message.role.capitalize()}: {message.content.strip()}" for message in messages]
    if add_generation_prompt:
        parts.append("Assistant:")
    return "\n\n".join(parts)
