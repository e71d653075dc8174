"""Registering qemu with the kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.devices.binfmt import build_registration, is_usable


@pytest.mark.parametrize(
    "flags, state, expected",
    [("POF", "enabled", True), ("F", "enabled", True), ("PO", "enabled", False), ("F", "disabled", False)],
)
def test_only_an_entry_that_keeps_its_interpreter_open_will_do(
    tmp_path: Path, flags: str, state: str, expected: bool
) -> None:
    entry = tmp_path / "qemu-aarch64"
    entry.write_text(f"{state}\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {flags}\noffset 0\nmagic 7f45\n")
    assert is_usable(entry) is expected


def test_no_entry_will_not_do(tmp_path: Path) -> None:
    assert not is_usable(tmp_path / "qemu-aarch64")


def test_the_registration_fits_aarch64_programs_and_no_others() -> None:
    line = build_registration("name", "/usr/bin/qemu").decode()
    match = re.fullmatch(r":name:M::((?:\\x\w\w)+):((?:\\x\w\w)+):/usr/bin/qemu:F", line)
    assert match
    magic, mask = (bytes.fromhex(part.replace("\\x", "")) for part in match.groups())

    def fits(header: bytes) -> bool:
        return all(byte & bits == wanted for byte, bits, wanted in zip(header, mask, magic, strict=False))

    def make_header(machine: int, kind: int) -> bytes:
        ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
        return ident + kind.to_bytes(2, "little") + machine.to_bytes(2, "little")

    assert len(magic) == len(mask) == 20
    assert fits(make_header(183, 2)) and fits(make_header(183, 3))  # a program, and one that can lie anywhere
    assert not fits(make_header(62, 2)) and not fits(make_header(40, 2))
