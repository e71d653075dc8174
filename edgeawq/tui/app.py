"""The chat in a terminal: ask, stream the answer, repeat."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.text import Text

from edgeawq.errors import EdgeawqError
from edgeawq.runtime.generate import FinishReason
from edgeawq.runtime.sampler import Sampler
from edgeawq.runtime.session import ChatSession
from edgeawq.tui.answer import StopRequest, catch_interrupt, describe_error, describe_last, quiet_terminal
from edgeawq.tui.commands import parse_command, run_command, unescape_message
from edgeawq.tui.history import find_history_file, open_history
from edgeawq.tui.live_region import LiveRegion, crop_row
from edgeawq.tui.markdown_stream import MarkdownStream
from edgeawq.tui.prompt import ChatPrompt
from edgeawq.tui.safe_text import strip_controls
from edgeawq.tui.status import describe_progress, describe_status

REDRAW_S = 0.05  # 20 pictures a second: smooth, and little to send over SSH
REDRAW_SHARE = 0.05  # … but never more than this share of the time: the rest belongs to the model
FIRST_HINT = "Enter sends, Alt-Enter begins a new line, /help shows more, Ctrl-D quits."


class ChatApp:
    """A conversation at a terminal that can move its cursor."""

    def __init__(self, session: ChatSession, sampler: Sampler, *, max_new_tokens: int | None = None) -> None:
        self._session = session
        self._sampler = sampler
        self._max_new_tokens = max_new_tokens
        self._console = _open_console()

    def run(self) -> int:
        """Talk until the person quits; returns the exit code."""
        history_file = find_history_file()
        is_first_time = not history_file.exists()
        prompt = ChatPrompt(open_history(history_file), lambda: describe_status(self._session, self._console.width - 1))
        self._greet(is_first_time)
        # Also between an answer and the next prompt, which takes a moment on a slow device.
        with quiet_terminal():
            while self._take_turn(prompt):
                pass
        return 0

    def _take_turn(self, prompt: ChatPrompt) -> bool:
        """One message or command; False when the person quits."""
        try:
            text = prompt.ask()
        except EOFError:
            return False
        command = parse_command(text)
        if command is None:
            self._answer(unescape_message(text))
            return True
        outcome = run_command(self._session, *command)
        if not outcome.quits:
            self._console.print(Text(strip_controls(outcome.text), "yellow" if outcome.is_error else "dim"))
        return not outcome.quits

    def _greet(self, is_first_time: bool) -> None:
        engine = self._session.engine
        greeting = Text(engine.model_name, "bold")
        greeting.append(f" · {engine.device_name} · {self._session.context_length} tokens of context", "dim")
        self._console.print(greeting)
        if is_first_time:
            self._console.print(Text(FIRST_HINT, "dim"))

    def _answer(self, question: str) -> None:
        region = LiveRegion(sys.stdout, self._console)
        stream = MarkdownStream(self._console, self._text_width())
        problem = ""
        with catch_interrupt() as cancelled:
            try:
                reason = self._stream_answer(question, stream, region, cancelled)
                problem = describe_last(self._session, reason)
            except EdgeawqError as error:
                problem = describe_error(error)
            finally:
                stream.end()
                region.close(stream.take_finished())
        if problem:
            self._console.print(Text(problem, "yellow"))
        self._console.print()

    def _stream_answer(
        self, question: str, stream: MarkdownStream, region: LiveRegion, cancelled: StopRequest
    ) -> FinishReason | None:
        def show_progress(n_done: int, n_total: int) -> None:
            region.update((), [self._build_status(describe_progress(n_done, n_total))])

        reason: FinishReason | None = None
        next_redraw = 0.0
        pieces = self._session.reply(
            question,
            self._sampler,
            max_new_tokens=self._max_new_tokens,
            on_prefill_progress=show_progress,
            cancelled=cancelled,
        )
        for piece in pieces:
            stream.push(strip_controls(piece.text))
            reason = piece.finish_reason
            now = time.monotonic()
            if now >= next_redraw:
                self._redraw(stream, region)
                done = time.monotonic()
                next_redraw = done + max(REDRAW_S, (done - now) / REDRAW_SHARE)
        return reason

    def _redraw(self, stream: MarkdownStream, region: LiveRegion) -> None:
        stream.width = self._text_width()
        # The live part, the status line and a spare row always fit on the screen, so it can be redrawn as a whole.
        n_live = max(1, min(self._console.height - 3, 12))
        finished = stream.take_finished(max_live_rows=n_live)
        status = self._build_status(describe_status(self._session, self._text_width()))
        region.update(finished, [*stream.live_rows()[-n_live:], status])

    def _build_status(self, text: str) -> Text:
        return crop_row(Text(text, "dim"), self._text_width())

    def _text_width(self) -> int:
        return max(10, self._console.width - 1)


def _open_console() -> Console:
    """A console of the terminal's own size, also after the window changed.

    COLUMNS and LINES tell the size of some window at some time, and rich believes them more than the terminal: they are
    inherited from a shell that exports them, or from a Python program that loaded readline. Rows that are too wide for
    the screen wrap, the live rows no longer fit on it, and each redraw would leave copies of them in the scrollback.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return Console(highlight=False, _environ=environment)
