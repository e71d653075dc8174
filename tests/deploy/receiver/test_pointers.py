from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgeawq.deploy.receiver.home import Home
from edgeawq.deploy.receiver.limits import MAX_BAD_STARTS
from edgeawq.deploy.receiver.pointers import count_starts, find_target, point, switch_to, write_launcher
from edgeawq.deploy.receiver.refusal import Refusal

OLD, NEW = "0" * 15 + "1", "0" * 15 + "2"

# What the launcher runs: it tells what it was given, and crashes when its release says so.
PROGRAM = """
import os, sys
print(os.environ["PYTHONPATH"].split("/")[-2], *sys.argv[1:])
here = os.path.dirname(__file__)
if os.path.exists(os.path.join(here, "crash")):
    sys.exit(9)
starts = os.environ.get("EDGEAWQ_STARTS")
if starts:
    os.unlink(starts)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(str(tmp_path / "a folder"))
    home.make_folders()
    for name in (OLD, NEW):
        package = Path(home.path("releases", name, "site", "edgeawq"))
        package.mkdir(parents=True)
        (package / "__main__.py").write_text(PROGRAM)
    switch_to(home, OLD)
    switch_to(home, NEW)
    write_launcher(home)
    return home


def start(home: Home, *arguments: str, **environment: str) -> tuple[int, str, str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("EDGEAWQ_")}
    done = subprocess.run(
        [home.path("bin", "edgeawq"), *arguments], env={**base, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_points_and_remembers_what_was_before(home: Home) -> None:
    assert (find_target(home, "current"), find_target(home, "previous")) == (NEW, OLD)
    assert switch_to(home, OLD) == NEW
    assert (find_target(home, "current"), find_target(home, "previous")) == (OLD, NEW)
    assert switch_to(home, OLD) == OLD
    assert (find_target(home, "current"), find_target(home, "previous")) == (OLD, NEW), "nothing was before but itself"


@pytest.mark.parametrize("target", ["releases/0000000000000009", "/etc", "releases/../..", "nowhere", "current"])
def test_a_pointer_to_anything_else_is_none(home: Home, target: str) -> None:
    os.unlink(home.path("current"))
    os.symlink(target, home.path("current"))
    assert find_target(home, "current") is None
    assert switch_to(home, NEW) is None
    assert (find_target(home, "current"), find_target(home, "previous")) == (NEW, OLD)


def test_garbage_in_place_of_a_pointer_is_replaced(home: Home) -> None:
    os.unlink(home.path("current"))
    Path(home.path("current")).write_text("garbage")
    Path(home.path("current.new")).write_text("garbage")
    assert find_target(home, "current") is None
    point(home, "current", NEW)
    assert find_target(home, "current") == NEW and not os.path.lexists(home.path("current.new"))


def test_a_folder_in_place_of_a_pointer_is_not_thrown_away(home: Home) -> None:
    os.unlink(home.path("current"))
    os.mkdir(home.path("current"))
    with pytest.raises(Refusal, match="is a folder"):
        point(home, "current", NEW)
    assert not os.path.lexists(home.path("current.new"))


def test_the_launcher_runs_the_current_release_with_its_bundle(home: Home) -> None:
    bundle = home.path("releases", NEW, "bundle")
    assert start(home, "chat", "@bundle", "--prompt", "a b") == (0, f"{NEW} chat {bundle} --prompt a b", "")
    assert start(home, "--version")[1] == f"{NEW} --version"
    assert start(home, "chat", "other", "@bundle")[1] == f"{NEW} chat other @bundle"
    older = start(home, "chat", "@bundle", EDGEAWQ_RELEASE=home.path("releases", OLD))
    assert older[1].split()[0] == OLD
    link = Path(home.root).parent / "link"
    link.symlink_to(home.root)
    assert subprocess.run([link / "bin/edgeawq", "x"], capture_output=True, text=True).stdout.split()[0] == NEW


@pytest.mark.parametrize("command", ["chat", "run"])
def test_a_release_that_never_answers_gives_way_to_the_one_before(home: Home, command: str) -> None:
    crash = Path(home.path("releases", NEW, "site", "edgeawq", "crash"))
    crash.write_text("")
    for count in range(1, MAX_BAD_STARTS + 1):
        code, output, errors = start(home, command, "@bundle")
        assert (code, output.split()[0], errors) == (9, NEW, "") and count_starts(home, NEW) == count
    for _ in range(2):
        code, output, errors = start(home, command, "@bundle")
        assert (code, output.split()[0]) == (0, OLD) and "never answered" in errors
    assert count_starts(home, NEW) == MAX_BAD_STARTS and count_starts(home, OLD) == 0
    assert start(home, "status")[1].split()[0] == NEW, "only what loads the model is counted"
    switch_to(home, NEW)  # what was pushed again gets new chances
    crash.unlink()
    assert start(home, command, "@bundle")[:2] == (0, f"{NEW} {command} {home.path('releases', NEW, 'bundle')}")


def test_an_answer_takes_the_count_away(home: Home) -> None:
    crash = Path(home.path("releases", NEW, "site", "edgeawq", "crash"))
    for _ in range(3):
        crash.write_text("")
        for _ in range(MAX_BAD_STARTS - 1):
            assert start(home, "chat", "@bundle")[0] == 9
        crash.unlink()
        assert start(home, "chat", "@bundle")[0] == 0 and count_starts(home, NEW) == 0


def test_without_a_release_before_the_only_one_is_tried_again(home: Home) -> None:
    os.unlink(home.path("previous"))
    Path(home.path("releases", NEW, "site", "edgeawq", "crash")).write_text("")
    for _ in range(MAX_BAD_STARTS + 2):
        assert start(home, "chat", "@bundle")[:2] == (9, f"{NEW} chat {home.path('releases', NEW, 'bundle')}")


def test_starts_that_cannot_be_counted_are_no_obstacle(home: Home) -> None:
    os.rmdir(home.path("starts"))
    code, output, errors = start(home, "chat", "@bundle")
    assert (code, output.split()[0]) == (0, NEW), errors
