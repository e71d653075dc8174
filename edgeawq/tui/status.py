"""Figures of a conversation in words: the status line and /stats."""

from __future__ import annotations

from edgeawq.runtime.session import ChatSession
from edgeawq.runtime.stats import GenerationStats


def describe_status(session: ChatSession, n_columns: int) -> str:
    """The status line, as much of it as fits: speed, context, memory, model, device, in this order of importance."""
    engine, stats = session.engine, session.last_stats
    used, total = session.context_used, session.context_length
    speed = f"{stats.decode_tokens_per_s:.1f} tok/s" if stats and stats.decode_tokens_per_s else ""
    parts = [
        speed,
        f"context {used}/{total} ({used * 100 // max(total, 1)}%)",
        f"{engine.decoder.memory_bytes / 2**20:.0f} MB",
        engine.model_name,
        engine.device_name,
    ]
    line = ""
    for part in filter(None, parts):
        longer = f"{line} · {part}" if line else part
        if len(longer) > n_columns:
            break
        line = longer
    return line


def describe_progress(n_done: int, n_total: int) -> str:
    """What is shown while the prompt is read."""
    return f"reading {n_done}/{n_total} tokens" if n_total > 256 else "thinking …"


def describe_decode(stats: GenerationStats, n_fewer: int) -> str:
    """The speed of writing; n_fewer: tokens so far for which the decoder has left a core to another program."""
    tokens = "1 token" if n_fewer == 1 else f"{n_fewer} tokens"
    fewer = f", {tokens} on fewer threads" if n_fewer else ""
    return f"{stats.decode_tokens_per_s:.1f} tokens/s{fewer}"


def describe_stats(session: ChatSession) -> list[tuple[str, str]]:
    """(name, value) rows for /stats."""
    engine, stats = session.engine, session.last_stats
    rows = [
        ("model", engine.model_name),
        ("packed for", engine.device_name),
        *engine.details,
        ("context", f"{session.context_used} of {session.context_length} tokens"),
        ("messages", str(len(session.messages))),
        ("model memory", f"{engine.decoder.memory_bytes / 2**20:.1f} MB"),
    ]
    resident = read_resident_bytes()
    if resident:
        rows.append(("process memory", f"{resident / 2**20:.1f} MB"))
    if stats is None:
        return rows
    return [
        *rows,
        ("last answer", f"{stats.generated_tokens} tokens in {stats.decode_s:.2f} s"),
        ("decode", describe_decode(stats, engine.decoder.steps_with_fewer_threads)),
        ("prompt", f"{stats.prompt_tokens} tokens read, {stats.reused_tokens} kept from before"),
        ("prefill", f"{stats.prefill_tokens_per_s:.1f} tokens/s"),
        ("first token", f"{stats.time_to_first_token_s:.2f} s"),
        ("when full", describe_shifts(session, stats)),
        ("speculation", describe_speculation(stats, is_on=session.speculates)),
    ]


def describe_shifts(session: ChatSession, stats: GenerationStats) -> str:
    """What happens, and has happened, when the context is full."""
    if session.on_full == "stop":
        return "stop"
    parts = [f"{session.n_dropped} messages dropped"] if session.n_dropped else []
    parts += [f"{stats.shifts} shifts in the last answer"] if stats.shifts else []
    return "; ".join(["shift", *parts])


def describe_speculation(stats: GenerationStats, *, is_on: bool) -> str:
    """How often drafts came true, in words."""
    if not stats.drafted_tokens:
        return "on, nothing was drafted" if is_on else "off"
    return f"{stats.accepted_tokens} of {stats.drafted_tokens} drafted tokens accepted ({stats.acceptance:.0%})"


def read_resident_bytes() -> int:
    """Memory of this process that is in RAM, in bytes; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            n_pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import os

    return n_pages * os.sysconf("SC_PAGE_SIZE")
