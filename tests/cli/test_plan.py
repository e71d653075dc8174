from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeawq.cli.main import main
from edgeawq.cli.plan import parse_size
from edgeawq.cli.plan_text import wrap_command
from edgeawq.errors import UsageError
from edgeawq.profiling.history import store_profile
from tests.profiling.example import make_profile
from tests.tiny_models import make_tiny_awq_checkpoint


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `edgeawq ARGUMENTS`: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeawq", *map(str, arguments)])
        for name, value in {
            "COLUMNS": "80",
            "NO_COLOR": "1",
            "EDGEAWQ_CACHE": str(tmp_path / "cache"),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "EDGEAWQ_INVENTORY": str(tmp_path / "edgeawq.toml"),
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return int(ended.value.code or 0), output.out, output.err

    return call


def test_plan_for_several_devices_fits_80_columns(run: Any) -> None:
    code, out, err = run("plan", "llama-2-7b", "--device", "pi5,orin-agx")
    assert (code, err) == (0, "")
    assert "Raspberry Pi 5" in out and "AGX Orin" in out
    assert "predicted" in out and "not measured" in out
    assert "edgeawq quantize MODEL_FOLDER -o llama-2-7b-w4g128 --bits 4 --group-size 128" in out.replace(
        "\\\n      ", ""
    )
    tables = out.partition("To go on")[0].splitlines()
    assert max(map(len, tables)) <= 80
    assert not any("…" in line for line in tables)


def test_json_has_every_choice_and_source(run: Any) -> None:
    code, out, _ = run("plan", "llama-2-7b", "-d", "pi4", "--memory", "8GiB", "--json", "--kv-bits", "8")
    (plan,) = json.loads(out)
    assert code == 0
    assert plan["kv_bits"] == 8 and plan["device"] == "pi4"
    assert len(plan["choices"]) == 24
    for figure in plan["figures"].values():
        assert figure["source"]
    pick = next(choice for choice in plan["choices"] if choice["is_pick"])
    assert pick["name"] == plan["pick"] == "w4g128"
    assert pick["decode_ceiling_tokens_per_s"] > pick["decode_expected_tokens_per_s"] > 0.7
    assert plan["loops"] and all("llvm-mca" in loop["source"] for loop in plan["loops"])


def test_commands_name_what_is_there(run: Any, tmp_path: Path) -> None:
    folder = make_tiny_awq_checkpoint(tmp_path / "tiny-awq", seed=5)
    code, out, _ = run("plan", folder, "-d", "pi4", "--json", "--context", "128", "--prompt", "64")
    (plan,) = json.loads(out)
    assert code == 0
    # It is quantized already: only its own grid, and no quantize command.
    assert {(choice["bits"], choice["group_size"]) for choice in plan["choices"]} == {(4, 64)}
    assert plan["commands"][1] == f"edgeawq push pi4 {folder}"
    assert not any("quantize" in line for line in plan["commands"])


def test_a_device_of_the_inventory_is_planned_by_its_profile(run: Any, tmp_path: Path) -> None:
    (tmp_path / "edgeawq.toml").write_text('[devices.kitchen]\nhost = "k"\nprofile = "pi5"\n')
    code, out, _ = run("plan", "smollm2-135m", "-d", "kitchen")
    assert code == 0 and "Raspberry Pi 5" in out


def test_host_has_no_figures_until_it_is_measured(run: Any) -> None:
    code, out, _ = run("plan", "smollm2-135m", "-d", "host")
    assert code == 0
    assert "edgeawq profile host" in out
    assert "edgeawq pack smollm2-135m-w4g64 --device host" in out


def test_this_machine_is_planned_with_what_was_measured_on_it(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "profiles"
    store_profile(folder / "localhost", make_profile(name="localhost", created="2026-01-01T00:00:00Z"))
    store_profile(folder / "host", make_profile(name="host", created="2026-01-02T00:00:00Z"))
    for name in ("host", "localhost"):
        code, out, _ = run("plan", "smollm2-135m", "-d", name, "--json")
        (plan,) = json.loads(out)
        assert code == 0 and plan["figures"]["bandwidth"]["kind"] == "measured"
        assert "2026-01-02" in plan["figures"]["bandwidth"]["source"]
        assert plan["calibration"]["source"].startswith("measured with smollm2-135m-instruct on host")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "smollm2-135m", "-d", "pi6"), "neither a device profile nor"),
        (("plan", "smollm2-135", "-d", "pi4"), "did you mean smollm2-135m"),
        (("plan", "smollm2-135m", "-d", ","), "no device is named"),
        (("plan", "smollm2-135m", "-d", "pi4", "--memory", "much"), "not an amount of memory"),
        (("plan", "smollm2-135m", "-d", "pi4", "--kv-bits", "4"), "KV cache of 4 bits"),
        (("plan", "smollm2-135m", "-d", "pi4", "--processor", "gpu"), "knows no processor 'gpu'"),
    ],
)
def test_mistakes_are_explained(run: Any, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("width", range(70, 90))
def test_commands_that_are_too_long_go_on_in_the_next_line(width: int) -> None:
    line = "edgeawq quantize embedded:smollm2-135m-instruct -o out " + " ".join(f"--option {i:09}" for i in range(40))
    wrapped = wrap_command(line, width)
    assert max(map(len, wrapped.splitlines())) <= width
    assert shlex.split(wrapped.replace("\\\n", "")) == shlex.split(line)
    assert wrap_command("edgeawq chat pi4", width) == "  edgeawq chat pi4"


def test_nothing_fits_says_what_is_missing(run: Any) -> None:
    code, out, _ = run("plan", "llama-2-70b", "-d", "pi4")
    assert code == 0
    assert "no fit" in out and "To go on" not in out


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("4GB", 4 * 10**9), ("512M", 512 * 10**6), ("1.5g", 15 * 10**8)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1e9", "8 apples"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)
