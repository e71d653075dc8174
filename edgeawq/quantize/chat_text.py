"""Chat messages as the text a model was trained on, for calibration: the checkpoint's own template, sandboxed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeawq.checkpoints.model import TokenizerFiles
from edgeawq.errors import CheckpointError, UsageError

Message = Mapping[str, str]
RenderChat = Callable[[Sequence[Message], bool], str]


def make_chat_renderer(tokenizer: TokenizerFiles) -> RenderChat | None:
    """A function (messages, whether to add the assistant's opening) → text; None where the model has no template.

    Raises CheckpointError for a template that is not valid; the function raises UsageError for messages that the
    template refuses.
    """
    if tokenizer.chat_template is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_template_error
    # A fixed day: what a template writes about today must not change the bytes of a checkpoint.
    environment.globals["strftime_now"] = lambda form: datetime(2025, 1, 1).strftime(form)
    try:
        template = environment.from_string(tokenizer.chat_template)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"the model's chat template is not valid: {error}") from error

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=tokenizer.bos_token or "",
                eos_token=tokenizer.eos_token or "",
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UsageError(
                f"the model's chat template refuses the messages: {error}",
                remedy="give messages with the roles and the order that the model knows, or plain text",
            ) from error

    return render


def raise_template_error(message: str) -> None:
    """What a chat template calls for messages it does not accept."""
    raise jinja2.TemplateError(message)
