"""Bundles that run on the machine that runs the tests, and the torch reference of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from device_profiles.detect import detect_host
from device_profiles.profile import DeviceProfile
from device_profiles.target import Target
from edgeawq.runtime.cpu import machine
from packager.pack import pack_checkpoint
from tests.tiny_models import TinyCheckpoint

Reference = Callable[[list[int]], np.ndarray]


def host_profile() -> DeviceProfile:
    """This machine, with the kernels of its family: one object serves every test."""
    profile = detect_host()
    if machine() == "x86_64":
        return replace(profile, target=Target("x86_64-unknown-linux-gnu", "x86-64-v3", (), "avx2"))
    return replace(profile, target=Target("aarch64-unknown-linux-gnu", "generic", ("+neon",), "neon"))


def pack_for_host(model: TinyCheckpoint, folder: Path) -> Path:
    pack_checkpoint(model, host_profile(), folder)
    return folder


def reference_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """float64 logits [tokens, vocab] of the dequantized weights, in torch."""
    import torch

    from edgeawq.quantize.llama import load_decoder

    with torch.no_grad():
        logits: np.ndarray = load_decoder(model, torch.float64)(torch.tensor([tokens]))[0].numpy()
    return logits
