from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeawq.cli.main import main
from edgeawq.cli.status_speed import describe_health, expect_decode, find_health, print_speeds
from edgeawq.deploy.inventory import Device
from edgeawq.profiling.history import profile_folder, store_profile
from edgeawq.profiling.schema import dump_profile, parse_profile
from tests.profiling.example import make_profile


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `edgeawq ARGUMENTS`: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeawq", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return int(ended.value.code or 0), output.out, output.err

    return call


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_bytes(dump_profile(make_profile()))
    after.write_bytes(dump_profile(make_profile(decode_scale=1.3)))
    return before, after


def test_show_prints_the_report(run: Any, files: tuple[Path, Path]) -> None:
    code, out, err = run("profile", "show", files[0])
    assert (code, err) == (0, "")
    assert "Decode is memory-bound" in out and "operations per byte" in out


def test_show_as_json_is_the_document(run: Any, files: tuple[Path, Path]) -> None:
    code, out, _ = run("profile", "show", files[0], "--json")
    assert code == 0 and parse_profile(out.encode()) == make_profile()
    code, out, _ = run("profile", "show", files[0], "--verdicts", "--json")
    assert code == 0 and "narrow-head" in {verdict["kind"] for verdict in json.loads(out)}


def test_show_writes_a_page(run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="the charts' library is not installed")
    page = tmp_path / "page.html"
    code, out, _ = run("profile", "show", files[0], "--html", page)
    assert (code, out) == (0, "")
    assert page.read_text().startswith("<!doctype html>")
    code, _, err = run("profile", "show", files[0], "--html", tmp_path / "nowhere" / "page.html")
    assert code == 2 and "cannot be written" in err


def test_without_the_charts_library_the_pip_command_is_said(
    run: Any, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    code, _, err = run("profile", "show", files[0], "--html", tmp_path / "page.html")
    assert code == 1 and "pip install 'edgeawq[host]'" in err


def test_compare_marks_regressions_and_can_fail(run: Any, files: tuple[Path, Path]) -> None:
    code, out, _ = run("profile", "compare", *files)
    assert code == 0 and "5 regressions against before" in out
    assert run("profile", "compare", *files, "--fail-on-regression")[0] == 1
    assert run("profile", "compare", *reversed(files), "--fail-on-regression")[0] == 0
    assert run("profile", "compare", *files, "--fail-on-regression", "--threshold", "60")[0] == 0


def test_compare_as_json(run: Any, files: tuple[Path, Path]) -> None:
    code, out, _ = run("profile", "compare", *files, "--json")
    document = json.loads(out)
    assert code == 0 and len(document["regressions"]) == 5
    row = next(row for row in document["rows"] if row["key"] == "decode.64")
    assert row["changes"] == ["same", "worse"] and row["ratios"][0] == 1.0


def test_mistakes_are_explained(run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"format": "something"}')
    for arguments, said in (
        (("profile", "compare", files[0]), "nothing to compare"),
        (("profile", "show", tmp_path / "none.json"), "cannot be read"),
        (("profile", "show", tmp_path / "other.json"), "not a measured profile"),
    ):
        code, out, err = run(*arguments)
        assert code != 0 and out == "" and said in err


def test_status_says_how_fast_a_device_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path))
    device = Device(name="pi", profile="pi5")
    assert find_health(device) is None and describe_health(None) is None
    folder = profile_folder(tmp_path / "profiles", "pi")
    store_profile(folder, make_profile(created="2026-01-01T00:00:00Z"))
    health = find_health(device)
    assert health is not None and health.expected_from == "the profile pi5"
    # 12.4 GB/s × 49 % over 89 MB a token
    assert health.expected_tokens_per_s == pytest.approx(12.4e9 * 0.49 / 89.3e6, rel=0.01)
    store_profile(folder, make_profile(created="2026-01-02T00:00:00Z", decode_scale=2.0))
    slow = find_health(device)
    assert slow is not None and slow.is_slow and slow.expected_from == "its own past"
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        print_speeds(console, [("pi", slow)])
    assert slow.share_of_expected is not None and 0.45 < slow.share_of_expected < 0.6
    assert f"tokens/s, {100 * slow.share_of_expected:.0f} %" in captured.get()
    assert "of 1 earlier measurement" in captured.get() and "edgeawq profile pi" in captured.get()
    described = describe_health(slow)
    assert described is not None and described["is_slow"] and json.dumps(described)


def test_this_machine_is_found_under_its_measured_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path))
    store_profile(profile_folder(tmp_path / "profiles", "host"), make_profile(name="host"))
    assert find_health(Device(name="localhost", transport="local")) is not None
    assert find_health(Device(name="other")) is None


def test_no_profile_promises_nothing() -> None:
    assert expect_decode(make_profile(), "") == (None, "")
    assert expect_decode(make_profile(), "no-such-profile") == (None, "")
    assert expect_decode(make_profile(model=False), "pi5") == (None, "")
