"""The boards that are emulated: what Linux says about them, and the CPU that qemu gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.devices.errors import EmulationError


@dataclass(frozen=True)
class Board:
    """One kind of board. The texts are those of a real one; `memory_kb` is what Linux has left of the whole."""

    name: str
    model: str  # /proc/device-tree/model
    qemu_cpu: str
    cpu_features: str  # "Features" of /proc/cpuinfo
    cpu_part: str
    cpu_variant: str
    cpu_revision: int
    chip: str
    board_revision: str
    memory_kb: int
    cores: int = 4

    def cpuinfo(self) -> str:
        """/proc/cpuinfo. qemu's own shows the host's cores, and claims more features than the real chip has."""
        core = (
            f"BogoMIPS\t: 108.00\nFeatures\t: {self.cpu_features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: {self.cpu_variant}\nCPU part\t: {self.cpu_part}\nCPU revision\t: {self.cpu_revision}\n\n"
        )
        cores = "".join(f"processor\t: {index}\n{core}" for index in range(self.cores))
        tail = f"Revision\t: {self.board_revision}\nSerial\t\t: 10000000deadbeef\nModel\t\t: {self.model}\n"
        return f"{cores}Hardware\t: {self.chip}\n{tail}"

    def meminfo(self) -> str:
        """/proc/meminfo of an idle board, with the lines that programs read."""
        values = {
            "MemTotal": self.memory_kb,
            "MemFree": self.memory_kb * 80 // 100,
            "MemAvailable": self.memory_kb * 90 // 100,
            "Buffers": 20_000,
            "Cached": self.memory_kb * 10 // 100,
            "SwapTotal": 0,
            "SwapFree": 0,
        }
        return "".join(f"{name + ':':<15} {value:>8} kB\n" for name, value in values.items())


# Armv8.0: no dot product, no atomics, no half precision, no AES.
PI4 = Board(
    name="pi4",
    model="Raspberry Pi 4 Model B Rev 1.4",
    qemu_cpu="cortex-a72",
    cpu_features="fp asimd evtstrm crc32 cpuid",
    cpu_part="0xd08",
    cpu_variant="0x0",
    cpu_revision=3,
    chip="BCM2835",  # that is what the kernel of a Pi 4 prints
    board_revision="c03114",
    memory_kb=3_884_360,
)

# Armv8.2 with the int8 dot product.
PI5 = Board(
    name="pi5",
    model="Raspberry Pi 5 Model B Rev 1.0",
    qemu_cpu="cortex-a76",
    cpu_features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    cpu_part="0xd0b",
    cpu_variant="0x4",
    cpu_revision=1,
    chip="BCM2712",
    board_revision="d04170",
    memory_kb=8_255_712,
)

BOARDS = {board.name: board for board in (PI4, PI5)}


def find_board(device_name: str) -> Board:
    """The board of a device called "pi4", or "pi4-left": so there can be several of one kind. EmulationError."""
    match = re.fullmatch(r"(pi\d)(-[a-z0-9]{1,20})?", device_name)
    if match is None or match.group(1) not in BOARDS:
        names = " and ".join(BOARDS)
        raise EmulationError(
            f"there is no emulated device {device_name!r}",
            remedy=f"there are {names}; a second one of a kind is called {PI4.name}-NAME, in small letters and digits",
        )
    return BOARDS[match.group(1)]
