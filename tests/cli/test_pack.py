from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import cpu_kernels.build
from device_profiles import detect
from device_profiles.target import Target
from edgeawq.cli.main import main
from edgeawq.errors import ProfileError
from edgeawq.runtime.golden import check_golden
from packager.bundle_files import verify_files
from packager.manifest_reader import read_manifest
from tests.tiny_models import make_tiny_awq_checkpoint, make_tiny_hf_checkpoint

FOREIGN = {"aarch64": "laptop-avx2", "x86_64": "pi4"}


@pytest.fixture(autouse=True)
def _quick_foreign_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for this CPU are the real ones; those for another machine are not run here and need no compiler."""
    build_object = cpu_kernels.build.build_object
    own = detect.detect_host().target.machine

    def build(target: Target, isa: str, bits: Sequence[int]) -> bytes:
        return build_object(target, isa, bits) if target.machine == own else b"\x7fELF of " + str(target).encode()

    monkeypatch.setattr(cpu_kernels.build, "build_object", build)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `edgeawq ARGUMENTS`: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeawq", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return int(ended.value.code or 0), output.out, output.err

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_awq_checkpoint(tmp_path_factory.mktemp("pack") / "tiny-awq", seed=7)


def foreign_device() -> str:
    return FOREIGN[detect.detect_host().target.machine]


def test_pack_for_this_computer_and_run_its_golden_answer(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny.edgeawq"
    code, out, err = run("pack", checkpoint, "--device", "host", "-o", bundle)
    assert code == 0
    assert err == "packing tiny-awq for host\nrecording the golden answer\n"
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert manifest.device.profile == "host"
    assert "golden answer  recorded" in out
    assert "bits per weight" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert check_golden(bundle, n_threads=1).ok


def test_pack_for_another_machine_records_the_answer_of_a_twin(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    device = foreign_device()
    code, out, _ = run("pack", checkpoint, "-d", device, "-o", tmp_path / "foreign", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["golden"]
    assert [note for note in result["notes"] if "recorded on this computer" in note]
    assert result["path"] == str(tmp_path / "foreign")
    assert result["decode_ceiling_tokens_per_s"] == pytest.approx(
        result["bandwidth_bytes_per_s"] / result["bytes_per_token"]
    )
    assert result["bandwidth_source"]
    verify_files(tmp_path / "foreign", read_manifest(tmp_path / "foreign"))
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]

    assert run("pack", checkpoint, "-d", "host", "-o", tmp_path / "own")[0] == 0
    goldens = [json.loads((tmp_path / name / "golden.json").read_text()) for name in ("foreign", "own")]
    assert goldens[0] == goldens[1]


def test_a_computer_without_kernels_packs_without_an_answer(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ProfileError("Old CPU: no kernels for this CPU")

    device = foreign_device()
    monkeypatch.setattr(detect, "detect_host", fail)
    code, out, _ = run("pack", checkpoint, "-d", device, "-o", tmp_path / "b")
    assert code == 0
    assert "golden answer  none" in out
    assert "no golden answer is recorded: Old CPU" in " ".join(out.split())
    assert read_manifest(tmp_path / "b").file("golden") is None


def test_without_a_golden_answer_where_none_is_wanted(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = run("pack", checkpoint, "-d", foreign_device(), "-o", tmp_path / "b", "--no-golden", "--json")
    assert code == 0
    assert json.loads(out)["golden"] is False


def test_the_folder_is_named_after_checkpoint_and_device(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    device = foreign_device()
    name = f"tiny-awq-{device}.edgeawq"
    assert run("pack", f"{checkpoint}/", "-d", device, "--no-golden")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]

    code, _, err = run("pack", checkpoint, "-d", device, "--no-golden")
    assert code == 1
    assert f"edgeawq: the bundle {name} exists\n  → add --overwrite to replace it, or choose another -o\n" in err
    assert run("pack", checkpoint, "-d", device, "--no-golden", "--overwrite")[0] == 0


def test_what_was_rounded_is_said(run: Any, tmp_path: Path) -> None:
    folder = make_tiny_awq_checkpoint(tmp_path / "float-head", seed=1, head_bits=None)
    code, out, _ = run("pack", folder, "-d", foreign_device(), "-o", tmp_path / "b", "--no-golden", "--head-bits", 4)
    assert code == 0
    assert "note: model.embed_tokens was float and is rounded to 4 bits" in out


def test_weights_that_do_not_fit_are_pointed_out(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "edgeawq" / "profiles"
    folder.mkdir(parents=True)
    shipped = Path(detect.__file__).parent / "data" / f"{foreign_device()}.toml"
    lines = shipped.read_text().splitlines()
    index = lines.index("[figures.memory_bytes]") + 1
    lines[index] = "value = 400000"
    (folder / "toaster.toml").write_text("\n".join(lines))
    code, out, _ = run("pack", checkpoint, "-d", "toaster", "-o", tmp_path / "b", "--no-golden")
    assert code == 0
    assert "too little is left" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "CHECKPOINT"),
        (("some-folder",), 2, "--device"),
        (("CHECKPOINT", "-d", "pi6"), 1, "no device profile is called 'pi6'"),
        (("CHECKPOINT", "-d", "../pi4"), 1, "not a profile name"),
        (("CHECKPOINT", "-d", "pi4", "--head-bits", "5"), 2, "5 bits"),
        (("CHECKPOINT", "-d", "pi4", "--head-bits", "4"), 2, "8-bit grid"),
        (("FLOAT", "-d", "pi4"), 1, "edgeawq quantize"),
        (("no-such-model", "-d", "pi4"), 2, "no model 'no-such-model'"),
        (("CHECKPOINT", "-d", "pi4", "-o", "FLOAT"), 1, "not a bundle"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int,
    words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {"CHECKPOINT": str(checkpoint), "FLOAT": str(tmp_path / "float")}
    if "FLOAT" in arguments:
        make_tiny_hf_checkpoint(tmp_path / "float")
    before = sorted(tmp_path.iterdir())
    found, out, err = run("pack", *(given.get(argument, argument) for argument in arguments))
    assert found == code
    assert words in err
    assert "→" in err
    assert out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_the_list_of_devices(run: Any) -> None:
    code, out, _ = run("pack", "--list-devices")
    assert code == 0
    for name in ("arm-i8mm", "pi4", "pi5", "orin-agx", "orin-nano", "laptop-avx2", "laptop-avx512", "host"):
        assert f"\n{name} " in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    code, out, _ = run("pack", "--list-devices", "--json")
    profiles = {entry["name"]: entry for entry in json.loads(out)}
    assert profiles["pi4"]["target"]["cpu"] == "cortex-a72"
    assert profiles["pi4"]["sources"]["bandwidth_measured_bytes_per_s"]
    assert profiles["host"]["bandwidth_measured_bytes_per_s"] is None


def read_terminal(descriptor: int) -> str:
    """Everything that is written to a terminal until its last writer has closed it."""
    shown = b""
    with open(descriptor, "rb", buffering=0) as terminal:
        try:
            while chunk := terminal.read(4096):
                shown += chunk
        except OSError as error:  # how Linux reports the end
            assert error.errno == errno.EIO
    return shown.decode()


def test_a_terminal_gets_a_bar_and_a_script_gets_only_json(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "edgeawq", "pack", str(checkpoint), "-d", "host", "-o", str(tmp_path / "b")]
    with open(tmp_path / "output", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=child)
    os.close(child)
    shown = read_terminal(parent)
    assert process.wait() == 0
    assert "recording the golden answer" in shown
    assert "B/s" in shown
    assert "golden answer  recorded" in (tmp_path / "output").read_text()

    code, out, err = run("pack", checkpoint, "-d", "host", "-o", tmp_path / "b", "--overwrite", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["isa"] == detect.detect_host().target.isa


def test_help_has_an_example(run: Any) -> None:
    code, out, _ = run("pack", "--help")
    assert code == 0
    assert "Example:" in out
    assert "--list-devices" in out


def test_leftovers_of_a_killed_pack_are_swept(tmp_path: Path) -> None:
    from edgeawq.cli.pipeline_pack import GOLDEN_PREFIX, sweep_leftovers

    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    stale = tmp_path / f"{GOLDEN_PREFIX}{dead.pid}-x1"
    (stale / "host").mkdir(parents=True)
    mine = tmp_path / f"{GOLDEN_PREFIX}{os.getpid()}-x2"
    other = tmp_path / f"{GOLDEN_PREFIX}notes"
    mine.mkdir()
    other.mkdir()
    sweep_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, other.name])
