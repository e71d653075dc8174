"""Emulated Raspberry Pis for the tests, and a host with a home of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.devices.boards import Board
from tests.devices.cache import cache_folder
from tests.devices.command_line import CommandLine
from tests.devices.device import EmulatedDevice
from tests.devices.errors import EmulationError
from tests.devices.requirements import find_obstacle
from tests.devices.root_tree import build_root_tree

StartDevice = Callable[..., EmulatedDevice]


@pytest.fixture(scope="session")
def root_tree() -> Path:
    """The tree that the devices share; without one, whoever asks for it is skipped, with the reason."""
    obstacle = find_obstacle()
    try:
        if obstacle is not None:
            raise obstacle
        return build_root_tree()
    except EmulationError as error:
        pytest.skip(f"{error.what}: {error.remedy}")


@pytest.fixture(scope="module")
def start_device(root_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDevice]:
    """Starts devices with an empty disk, or with a copy of another one's; they are gone after the module."""
    devices: list[EmulatedDevice] = []

    def start(board: Board, *, name: str = "", disk_of: EmulatedDevice | None = None) -> EmulatedDevice:
        device = EmulatedDevice(board, tmp_path_factory.mktemp(board.name), name=name)
        if disk_of is not None:
            disk_of.copy_disk(device.folder)
        device.start()
        devices.append(device)
        return device

    yield start
    for device in devices:
        device.stop()
        shutil.rmtree(device.folder)  # some hundred megabytes, which pytest would keep for three sessions


@pytest.fixture(scope="module")
def host(root_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The computer that pushes. What it downloads and compiles stays for the next session."""
    command_line = CommandLine(tmp_path_factory.mktemp("host"), kept=cache_folder() / "host")
    yield command_line
    shutil.rmtree(command_line.home)
