"""Which number of threads is taken, and that it is remembered for this CPU and this bundle only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.runtime import thread_choice
from edgeawq.runtime.thread_choice import (
    FILE_NAME,
    MAX_ENTRIES,
    ThreadChoice,
    list_candidates,
    measure_threads,
    pick_fastest,
    read_cpu_model,
    recall_threads,
    remember_threads,
)
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FILE_NAME


def make_bundle(folder: Path, content: str = "{}") -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 6, 8, 12, 64])
def test_candidates(n_cpus: int) -> None:
    numbers = list_candidates(n_cpus)
    assert numbers[0] == n_cpus and numbers == sorted(set(numbers), reverse=True)
    assert len(numbers) <= 8 and min(numbers) >= 1
    if n_cpus <= 12:
        assert set(range(1, min(4, n_cpus) + 1)) <= set(numbers)


def test_fewer_threads_win_unless_more_are_clearly_faster() -> None:
    assert pick_fastest({1: 50, 2: 90, 4: 91}) == 2
    assert pick_fastest({1: 50, 2: 90, 4: 120}) == 4
    assert pick_fastest({1: 100, 2: 30}) == 1


def test_a_choice_is_remembered_for_this_bundle_only(cache: Path, tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two", '{"x": 1}')
    assert recall_threads(one) == 0
    remember_threads(one, ThreadChoice(3, {3: 10.0, 1: 4.0}))
    assert recall_threads(one) == 3
    assert recall_threads(two) == 0 and recall_threads(one, "float") == 0
    remember_threads(two, ThreadChoice(1, {1: 4.0}))
    remember_threads(one, ThreadChoice(2, {2: 11.0}))
    assert (recall_threads(one), recall_threads(two)) == (2, 1)
    # the same bundle in another folder is the same
    assert recall_threads(make_bundle(tmp_path / "copy")) == 2
    assert recall_threads(tmp_path / "absent") == 0


def test_another_cpu_or_another_share_of_it_is_measured_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "one")
    remember_threads(bundle, ThreadChoice(3, {3: 10.0}))
    with monkeypatch.context() as changed:
        changed.setattr(thread_choice, "read_cpu_model", lambda cpuinfo: "another CPU")
        assert recall_threads(bundle) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    assert recall_threads(bundle) == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format_version": 2, "entries": {}}',
        b'{"format_version": 1, "entries": []}',
        b"\xff\xff",
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(cache: Path, tmp_path: Path, content: bytes) -> None:
    bundle = make_bundle(tmp_path / "one")
    cache.parent.mkdir()
    cache.write_bytes(content)
    assert recall_threads(bundle) == 0
    remember_threads(bundle, ThreadChoice(3, {3: 10.0}))
    assert recall_threads(bundle) == 3


def test_entries_that_make_no_sense_are_left_out(cache: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    remember_threads(bundle, ThreadChoice(3, {3: 10.0}))
    document = json.loads(cache.read_text())
    (key,) = document["entries"]
    for value in (0, -1, 10**6, "3", None, True):
        document["entries"][key] = {"threads": value}
        cache.write_text(json.dumps(document))
        assert recall_threads(bundle) == 0


def test_the_file_stays_small(cache: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    cache.parent.mkdir()
    entries = {f"{index:032x}": {"threads": 1} for index in range(2 * MAX_ENTRIES)}
    cache.write_text(json.dumps({"format_version": 1, "entries": entries}))
    remember_threads(bundle, ThreadChoice(3, {3: 10.0}))
    assert len(json.loads(cache.read_text())["entries"]) == MAX_ENTRIES
    assert recall_threads(bundle) == 3


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError) as caught:
        remember_threads(make_bundle(tmp_path / "one"), ThreadChoice(3, {3: 10.0}))
    assert str(tmp_path / "file") in caught.value.what and caught.value.remedy


def test_cpu_models() -> None:
    x86 = "processor\t: 0\nmodel name\t: AMD EPYC\nmicrocode: 1\nprocessor\t: 1\nmodel name\t: AMD EPYC\n"
    assert read_cpu_model(x86) == "AMD EPYC"
    arm = "processor: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 4 Model B\n"
    assert read_cpu_model(arm) == "CPU implementer 0x41, CPU part 0xd08, Model Raspberry Pi 4 Model B"
    assert read_cpu_model("") == ""


def test_a_real_measurement_and_the_affinity_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = pack_for_host(make_tiny_model(3), tmp_path / "tiny.edgeawq")
    monkeypatch.setattr(thread_choice, "BUDGET_S", 0.2)
    before = os.sched_getaffinity(0)
    choice = measure_threads(bundle)
    assert os.sched_getaffinity(0) == before
    assert set(choice.decode_tokens_per_s) <= set(list_candidates(len(before)))
    assert choice.n_threads in choice.decode_tokens_per_s
    assert all(speed > 0 for speed in choice.decode_tokens_per_s.values())


def test_a_slow_model_is_measured_with_the_most_threads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = pack_for_host(make_tiny_model(3), tmp_path / "tiny.edgeawq")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
    clock = iter(range(0, 1000, 2))  # every look at the clock is two seconds later
    choice = measure_threads(bundle, now=lambda: float(next(clock)))
    assert list(choice.decode_tokens_per_s) == [4]
