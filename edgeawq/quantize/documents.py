"""One entry of a data set as a document: its `text`, or its chat `messages` through the model's template."""

from __future__ import annotations

from edgeawq.errors import UsageError
from edgeawq.quantize.chat_text import Message, RenderChat

TEXT, MESSAGES = "text", "messages"


def read_entry(entry: object, where: str, render_chat: RenderChat | None) -> str:
    """The document of a JSON value; `where` names it in the UsageError for one that has neither field."""
    fields = entry if isinstance(entry, dict) else {}
    if isinstance(fields.get(TEXT), str):
        return str(fields[TEXT])
    messages = read_messages(fields.get(MESSAGES))
    if not messages:
        raise UsageError(
            f'{where} has neither a "text" that is a string nor "messages" with "role" and "content"',
            remedy='write lines such as {"text": "…"} or {"messages": [{"role": "user", "content": "…"}]}',
        )
    if render_chat is None:
        raise UsageError(
            f"{where} has chat messages, but the model has no chat template",
            remedy='give lines with a "text" field for this model',
        )
    return render_chat(messages, False)


def read_messages(value: object) -> list[Message]:
    """Messages with role and content; empty where the value is not a list of such."""
    if not isinstance(value, list):
        return []
    messages: list[Message] = []
    for turn in value:
        role = turn.get("role") if isinstance(turn, dict) else None
        content = read_content(turn["content"]) if isinstance(turn, dict) and "content" in turn else None
        if not isinstance(role, str) or content is None:
            return []
        messages.append({"role": role, "content": content})
    return messages


def read_content(content: object) -> str | None:
    """A message's text: a string, or a list of parts {"type": "text", "text": "…"}; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None
