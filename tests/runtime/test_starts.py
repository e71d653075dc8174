"""The count of starts without an answer is taken away by an answer, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeawq.runtime.starts import STARTS_VARIABLE, note_answer


def test_takes_the_count_away_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = tmp_path / "starts"
    starts.write_text("start\nstart\n")
    monkeypatch.setenv(STARTS_VARIABLE, str(starts))
    note_answer()
    assert not starts.exists()
    starts.write_text("start\n")
    note_answer()
    assert starts.exists(), "a later answer of the same process is not the next start's"


def test_nothing_happens_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTS_VARIABLE, raising=False)
    note_answer()
    monkeypatch.setenv(STARTS_VARIABLE, str(tmp_path / "missing" / "starts"))
    note_answer()


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--help"], False),  # ended by itself
        (["run", "no-such-folder"], False),  # the user's mistake
        (["run", "BROKEN", "--prompt", "x"], True),  # the release's
    ],
)
def test_how_a_command_ends(arguments: list[str], kept: bool, tmp_path: Path) -> None:
    broken = tmp_path / "broken.edgeawq"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    starts = tmp_path / "starts"
    starts.write_text("start\n")
    words = [str(broken) if word == "BROKEN" else word for word in arguments]
    environment = {**os.environ, STARTS_VARIABLE: str(starts)}
    subprocess.run([sys.executable, "-m", "edgeawq", *words], env=environment, capture_output=True, check=False)
    assert starts.exists() is kept
