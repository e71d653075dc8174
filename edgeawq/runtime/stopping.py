"""Find stop strings in streamed text, also where one is split over several tokens."""

from __future__ import annotations

from collections.abc import Sequence

from edgeawq.errors import UsageError

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024


class StopStringFilter:
    """Passes text through, holding back only what may be the beginning of a stop string."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        check_stop_strings(stop_strings)
        self._stop_strings = tuple(stop_strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text; return what can be shown and whether a stop string was met (it is not part of the text)."""
        text = self._held + text
        starts = [(text.find(stop), len(stop)) for stop in self._stop_strings]
        # The one that is complete first wins, so that the result does not depend on how the text is cut into tokens.
        ends = [(start + length, start) for start, length in starts if start >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        n_held = self._count_held(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held], False

    def flush(self) -> str:
        """End of the text: return what was held back, which was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _count_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self._stop_strings:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """Raise UsageError for an empty stop string (it would stop at once), or for too many or too long ones."""
    if len(stop_strings) > MAX_STOP_STRINGS:
        raise UsageError(
            f"{len(stop_strings)} stop strings are more than the limit of {MAX_STOP_STRINGS}", remedy="give fewer"
        )
    for stop in stop_strings:
        if not stop:
            raise UsageError("a stop string is empty", remedy="leave it out")
        if len(stop) > MAX_STOP_CHARS:
            raise UsageError(
                f"a stop string has {len(stop)} characters, more than the limit of {MAX_STOP_CHARS}",
                remedy="use its beginning",
            )
