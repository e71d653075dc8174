"""SIGKILL of the receiver before, in the middle of and after every call by which it changes the disk or answers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from edgeawq.errors import EdgeawqError
from tests.deploy.faults.harness import Stage, kill_at, run_cases, sample

SHARDS = 4
CHECKED = "the device runs wholly the old or the new release and answers; the next push completes, no leftovers"


def list_steps(stage: Stage, log: Path) -> list[str]:
    """The steps of a push that goes well."""
    log.unlink(missing_ok=True)
    stage.push(stage.fresh(), prelude=kill_at(-1, "", log))
    return log.read_text().split()


def list_cases(steps: list[str]) -> list[tuple[int, str, str]]:
    cases = [(number, name, moment) for number, name in enumerate(steps) for moment in ("before", "after")]
    return cases + [(number, name, "halfway") for number, name in enumerate(steps) if name in ("pwrite", "write")]


def kill_and_complete(stage: Stage, entry: tuple[int, str, str]) -> None:
    number, _, moment = entry
    root = stage.fresh()
    # The last steps come after the push has got its last answer.
    with contextlib.suppress(EdgeawqError):
        stage.push(root, prelude=kill_at(number, moment))
    stage.check_and_complete(root)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_small_release(stage: Stage, tmp_path: Path, shard: int) -> None:
    steps = list_steps(stage, tmp_path / "log")
    assert len(steps) > 100 and {"rename", "replace", "fsync", "link", "symlink", "pwrite"} <= set(steps)
    cases = sample(list_cases(steps)[shard::SHARDS], 5)
    run_cases("receiver killed at a step on the disk", CHECKED, cases, lambda entry: kill_and_complete(stage, entry))


@pytest.mark.parametrize("shard", range(2))
def test_release_with_shared_chunks(large_stage: Stage, tmp_path: Path, shard: int) -> None:
    steps = list_steps(large_stage, tmp_path / "log")
    assert "ftruncate" in steps
    first = steps.index("ftruncate")  # what comes before is the same as for a small release
    cases = sample([entry for entry in list_cases(steps) if entry[0] >= first][shard::2], 3)
    kind = "receiver killed at a step on the disk (chunks)"
    run_cases(kind, CHECKED, cases, lambda entry: kill_and_complete(large_stage, entry))


def test_first_push(stage: Stage, tmp_path: Path) -> None:
    """Before the first release is whole there is none: nothing half must be called current."""
    log = tmp_path / "log"
    stage.push(tmp_path / "first", prelude=kill_at(-1, "", log))
    cases = sample(list_cases(log.read_text().split()), 5)

    def run(entry: tuple[int, str, str]) -> None:
        root = tmp_path / f"root{entry[0]}{entry[2]}"
        with contextlib.suppress(EdgeawqError):
            stage.push(root, prelude=kill_at(entry[0], entry[2]))
        if (root / "current").is_symlink():
            stage.check_and_complete(root, ("new",))
        else:
            stage.push(root)
            stage.check_and_complete(root, ("new",))

    run_cases("receiver killed at a step of a first push", CHECKED, cases, run)
