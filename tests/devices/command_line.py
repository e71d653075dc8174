"""edgeawq as a person at the host calls it: a process of its own, with a home, an inventory and a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.devices.device import EmulatedDevice

ROOT = Path(__file__).parents[2]
NOT_INHERITED = ("SSH_AUTH_SOCK", "EDGEAWQ_SSH_PASSWORD", "EDGEAWQ_LOCAL_ROOT", "XDG_CONFIG_HOME", "NO_COLOR")

KEPT = ("wheels", "sites", "kernels")  # each is keyed by what it was made of, so none is ever out of date


@dataclass(frozen=True)
class Answer:
    """What a command has printed, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as JSON; what --json promises."""
        return json.loads(self.stdout)


class CommandLine:
    """The host's side: `home` holds everything that edgeawq writes for its user."""

    def __init__(self, home: Path, kept: Path) -> None:
        """kept: where wheels, site folders and compiled kernels stay from one test session to the next."""
        self.home = home
        self.inventory = home / "edgeawq.toml"
        cache = home / "cache"
        cache.mkdir(parents=True)
        for name in KEPT:
            (kept / name).mkdir(parents=True, exist_ok=True)
            (cache / name).symlink_to(kept / name)
        self.settings: Mapping[str, str] = {
            "HOME": str(home),
            "EDGEAWQ_INVENTORY": str(self.inventory),
            "EDGEAWQ_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *arguments: str, timeout_s: float = 300.0) -> Answer:
        """`edgeawq ARGUMENTS…`, without a terminal."""
        process = self.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Answer(process.returncode, stdout, stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same, not yet ended."""
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        return subprocess.Popen(
            [sys.executable, "-m", "edgeawq", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **self.settings},
            cwd=self.home,
        )

    def expect(self, *arguments: str, timeout_s: float = 300.0) -> Answer:
        """The same, for a command that must succeed."""
        answer = self.run(*arguments, timeout_s=timeout_s)
        assert answer.exit_code == 0, f"edgeawq {' '.join(arguments)}\n{answer.stdout}\n{answer.stderr}"
        return answer

    def add(self, device: EmulatedDevice, *options: str) -> Answer:
        """`edgeawq device add`, with the host key that a person would compare."""
        return self.expect(
            *("device", "add", device.name, f"pi@127.0.0.1:{device.port}"),
            *("--identity", str(device.identity), "--yes-host-key", device.fingerprint),
            *options,
        )
