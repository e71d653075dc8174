"""A machine's figures as lines of text, for every form of the report."""

from __future__ import annotations

from collections.abc import Iterator

from edgeawq.profiling.schema import Profile
from edgeawq.profiling.units import show, three_digits, with_prefix
from edgeawq.profiling.verdict_parts import count_threads


def list_machine(profile: Profile) -> Iterator[tuple[str, str]]:
    """(what, figure): roofs, clock, barriers, pages, storage and energy."""
    for roof in profile.roofs:
        is_memory = roof.kind == "memory"
        value = show(roof.bytes_per_second or 0, "B/s") if is_memory else show(roof.ops_per_second or 0, "op/s")
        yield f"roof {roof.name}", f"{value} with {count_threads(roof.threads)}"
    for clock in profile.clock[-1:]:
        yield "clock", f"{show(clock.hertz.median, 'Hz')} under load of {count_threads(clock.threads)}"
    for barrier in profile.barrier:
        yield "barrier", f"{with_prefix(barrier.seconds.median, 's')} for {count_threads(barrier.threads)}"
    for page in profile.pages:
        each = with_prefix(page.seconds_per_page.median, "s")
        yield f"{page.kind} pages", f"{each} a page, {show(page.bytes_per_second.median, 'B/s')}"
    for storage in profile.storage:
        how = storage.method if storage.cache_bypassed else f"{storage.method}; maybe from the page cache"
        yield "storage", f"{show(storage.bytes_per_second.median, 'B/s')} ({how})"
    for energy in profile.energy:
        each = "" if energy.tokens_per_joule is None else f", {three_digits(energy.tokens_per_joule)} tokens/J"
        text = f"{three_digits(energy.watts)} W of the {energy.scope}{each} ({energy.source})"
        yield f"energy, {energy.stage}", text
