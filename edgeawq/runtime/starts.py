"""A release that never comes to an answer: the launcher counts starts, this takes the count away again.

`bin/edgeawq` on a device adds a line to the file named by EDGEAWQ_STARTS before it starts a release. A release that is
killed while it loads, or crashes in its kernels, leaves the line there; after three such lines in a row the launcher
runs the release before it.
"""

from __future__ import annotations

import contextlib
import os

STARTS_VARIABLE = "EDGEAWQ_STARTS"


def note_answer() -> None:
    """This release works: it has computed something, or it has ended by itself. Nothing happens elsewhere."""
    path = os.environ.pop(STARTS_VARIABLE, "")
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)
