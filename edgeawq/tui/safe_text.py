"""Model text that is safe to send to a terminal."""

from __future__ import annotations

# C0 and C1 controls but tab and newline: an answer must not move the cursor, change the title or paste into the
# clipboard. The same for the marks that reverse the direction of the text behind them.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_DIRECTIONS = {code: None for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_TABLE = {**_CONTROLS, **_DIRECTIONS}


def strip_controls(text: str) -> str:
    """The text without control characters (newline and tab stay) and without bidirectional overrides."""
    return text.translate(_TABLE)
