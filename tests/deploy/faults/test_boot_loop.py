"""A release that crashes at every start: the launcher goes back to the one before by itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgeawq.deploy.receiver.limits import MAX_BAD_STARTS
from tests.deploy.faults.harness import Stage, case
from tests.deploy.invariants import answer


def start(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEAWQ_")}
    return subprocess.run(
        [root / "bin/edgeawq", "chat", "@bundle", "--prompt", "hi"], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("fault", ["exits", "is killed", "runs out of memory"])
def test_a_release_that_never_answers(stage: Stage, fault: str) -> None:
    with case("a release that crashes at every start", "the previous one runs after three starts, until the next push"):
        root = stage.fresh()
        stage.push(root)
        main = root / "current/site/edgeawq/__main__.py"
        good = main.read_text()
        crash = {"exits": "raise SystemExit(9)", "is killed": "import os; os.kill(os.getpid(), 9)"}
        crash["runs out of memory"] = "raise MemoryError"
        main.chmod(0o644)
        main.unlink()  # a file of its own: the store's, which the old release shares, stays
        main.write_text(crash[fault])
        for _ in range(MAX_BAD_STARTS):
            assert start(root).returncode != 0
        back = start(root)
        assert back.stdout == "answer to hi by old\n" and "never answered" in back.stderr
        main.write_text(good)
        stage.push(root)
        assert start(root).stdout == "answer to hi by new\n" and answer(root) == "new"
