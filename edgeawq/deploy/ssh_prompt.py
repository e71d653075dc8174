"""Asking for a password or passphrase at the terminal."""

from __future__ import annotations

import getpass
import os


def ask_at_terminal(question: str) -> str | None:
    """Ask at the controlling terminal, not on standard input, which may be a pipe; None when there is none."""
    if not has_terminal():
        return None
    try:
        return getpass.getpass(question)
    except EOFError:
        return None


def has_terminal() -> bool:
    """True when this process has a controlling terminal to ask at."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class RememberedAnswers:
    """Asks at the terminal, and asks only once in a command that connects several times."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._given: set[str] = set()

    def __call__(self, question: str) -> str | None:
        """Return the answer given on an earlier connection; ask when there is none, or when it was wrong."""
        if question in self._known and question not in self._given:
            self._given.add(question)
            return self._known[question]
        answer = ask_at_terminal(question)
        if answer is not None:
            self._known[question] = answer
        self._given.add(question)
        return answer

    def start_connection(self) -> None:
        """Begin anew: the remembered answers may be given once more."""
        self._given.clear()
