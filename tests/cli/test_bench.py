"""`edgeawq bench` on a tiny bundle, and what a device may answer."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeawq.cli.bench import command, format_csv, format_json, format_markdown, parse_rows, read_numbers
from edgeawq.errors import EdgeawqError, ProfileError, UsageError
from edgeawq.profiling.measure.bench import BenchOptions, BenchRow, list_tests, run_bench
from edgeawq.profiling.measure.statistics import summarize
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_for_host(make_tiny_model(5), tmp_path_factory.mktemp("model") / "tiny.edgeawq")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


ROW = BenchRow("a,b", 87_532_928, 4, "neon", "int8", 16, 4, "tg128", summarize([7.0, 8.0, 9.0]), 8.0, 1.0)


def test_a_row_for_each_number_of_threads_and_test(bundle: Path) -> None:
    result = bench(str(bundle), "-p", "8,70", "-n", "4", "-t", "1,2", "-r", "3", "-o", "json")
    assert result.exception is None
    rows = parse_rows(result.stdout.encode())
    assert [(row.threads, row.test) for row in rows] == [(t, test) for t in (1, 2) for test in ("pp8", "pp70", "tg4")]
    for row in rows:
        assert row.tokens_per_second.repetitions == 3 and row.model == "tiny-5" and row.bits == 4
        assert row.tokens_per_second.minimum <= row.mean_tokens_per_second <= row.tokens_per_second.maximum


class Clock:
    """A clock that goes on by a second a reading."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_a_rate_is_tokens_over_seconds(bundle: Path) -> None:
    seen: list[tuple[str, float]] = []
    options = BenchOptions(prompts=(20,), generations=(5,), threads=(1,), repetitions=2, activations="float")
    rows = list(run_bench(bundle, options, on_progress=lambda stage, share: seen.append((stage, share)), now=Clock()))
    assert [(row.test, row.mean_tokens_per_second, row.deviation_tokens_per_second) for row in rows] == [
        ("pp20", 20.0, 0.0),
        ("tg5", 5.0, 0.0),
    ]
    assert rows[0].activations == "float" and rows[0].kv_bits == 32
    assert seen == [("pp20, 1 threads", 0.0), ("tg5, 1 threads", 0.5), ("done", 1.0)]


def test_markdown_is_an_aligned_table() -> None:
    lines = format_markdown([ROW, ROW]).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert "8.00 ± 1.00" in lines[2] and "w4a8 neon" in lines[2] and "87.5 MB" in lines[2]


def test_csv_and_json_hold_all_figures() -> None:
    (row,) = csv.DictReader(io.StringIO(format_csv([ROW])))
    assert row["model"] == "a,b" and float(row["median_tokens_per_second"]) == 8.0 and row["repetitions"] == "3"
    assert parse_rows(format_json([ROW]).encode()) == [ROW]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"[{}]", format_json([ROW]).replace('"threads": 4', '"threads": -1').encode()]
)
def test_other_answers_of_a_device_are_refused(data: bytes) -> None:
    with pytest.raises(EdgeawqError):
        parse_rows(data)


def test_a_figure_out_of_bounds_is_named() -> None:
    document = json.loads(format_json([ROW]))
    document[0]["kv_bits"] = 65
    with pytest.raises(ProfileError, match="kv_bits"):
        parse_rows(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [("128,512", "prompt", (128, 512)), ("0", "prompt", ()), ("0,2", "threads", (0, 2)), ("0,7", "generate", (7,))],
)
def test_numbers(text: str, name: str, expected: tuple[int, ...]) -> None:
    assert read_numbers(text, name) == expected


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "99999999999", ",".join("1" * 65)])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(UsageError):
        read_numbers(text, "prompt")


@pytest.mark.parametrize("arguments", [["-p", "0", "-n", "0"], ["-p", "600"], ["-n", "100000"]])
def test_a_test_that_does_not_fit_is_refused(bundle: Path, arguments: list[str]) -> None:
    assert isinstance(bench(str(bundle), *arguments).exception, UsageError)


def test_without_a_bundle_or_a_device_there_is_nothing_to_do() -> None:
    assert isinstance(bench().exception, UsageError)
    with pytest.raises(UsageError):
        list_tests(BenchOptions(prompts=(), generations=()))
