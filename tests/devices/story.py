"""What the tests of both boards share: a model whose answers tell something, and its answer on this computer."""

from __future__ import annotations

import json
import random
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.devices.command_line import CommandLine
from tests.devices.device import EmulatedDevice
from tests.tiny_models import make_tiny_awq_checkpoint

QUESTION = "What is the capital of France?"
N_TOKENS = 48
GREEDY = ("--temperature", "0", "--max-tokens", str(N_TOKENS))
BUNDLE = ".edgeawq/current/bundle"


@dataclass(frozen=True)
class Model:
    """A checkpoint, and what it answers on this computer: token ids, and the text they make."""

    checkpoint: Path
    tokens: list[int]
    text: str


def make_model(host: CommandLine) -> Model:
    """A random model that answers on this computer with many different tokens.

    Its head is not tied to its embedding: with random weights a tied one only repeats the last token, on any kernel.
    """
    for seed in random.sample(range(10**6), 10):
        checkpoint = make_tiny_awq_checkpoint(host.home / f"tiny-{seed}", seed, tie=False)
        bundle = host.home / f"tiny-{seed}.edgeawq"
        host.expect("pack", str(checkpoint), "--device", "host", "-o", str(bundle))
        answer = host.expect("run", str(bundle), "--prompt", QUESTION, *GREEDY, "--json").json
        if len(set(answer["tokens"])) >= 16:
            return Model(checkpoint, answer["tokens"], answer["text"])
    raise AssertionError("ten random models in a row had nothing to say")


def answer_on(device: EmulatedDevice) -> Any:
    """What the device's current release answers, as `edgeawq run --json` prints it there."""
    words = ["run", BUNDLE, "--prompt", QUESTION, *GREEDY, "--json"]
    done = device.exec(f".edgeawq/bin/edgeawq {shlex.join(words)}")
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def try_instruction(device: EmulatedDevice, word: int) -> int:
    """Run one aarch64 instruction on the device, as machine code; return the exit code that the shell sees there."""
    program = f"""
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(({word}).to_bytes(4, "little") + (0xD65F03C0).to_bytes(4, "little"))  # and return
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    done = device.exec(f"python3 -c {shlex.quote(program)} 2>/dev/null; echo code $?")
    return int(done.stdout.split()[-1])
