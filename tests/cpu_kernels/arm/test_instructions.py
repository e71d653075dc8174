"""The bytes of an object hold no instruction that the board's CPU lacks.

llvm-objdump is given the extensions that the CPU has and nothing else; what it does not know then is beyond them. A
list of known offenders, found by their encodings, does the same without any program.
"""

from __future__ import annotations

import re
import struct
import subprocess

import llvmlite.binding as llvm
import pytest

from cpu_kernels.build import USUAL_BITS, WEIGHT_BITS, build
from device_profiles.profile import load_profile
from tests.cpu_kernels.arm.tools import find_objdump

# What the silicon has: BCM2711 (Cortex-A72 without the optional cryptography) and BCM2712 (Cortex-A76); and what every
# CPU with the int8 matrix product has.
EXTENSIONS = {
    "pi4": "+v8a,+crc",
    "pi5": "+v8.2a,+crc,+lse,+rdm,+dotprod,+fullfp16",
    "arm-i8mm": "+v8.2a,+crc,+lse,+rdm,+dotprod,+fullfp16,+i8mm",
}
OBJECTS = [(board, kind) for board in ("pi4", "pi5") for kind in ("kernels", "decoder")] + [("arm-i8mm", "linear")]
# (name, mask, value) of 32-bit encodings: Arm Architecture Reference Manual, section C4.1.
LATER = (
    ("sdot, udot, vector", 0x9F20FC00, 0x0E009400),
    ("sdot, udot, by element", 0x9F00F400, 0x0F00E000),
    ("smmla, usmmla", 0xFFE0F400, 0x4E80A400),
    ("usdot, vector", 0xBFE0FC00, 0x0E809C00),
    ("usdot, sudot, by element", 0xBF40F400, 0x0F00F000),
    ("half-precision vector arithmetic", 0x9F60C400, 0x0E400400),
    ("half-precision scalar arithmetic", 0xFF200C00, 0x1EE00800),
    ("LSE read-modify-write", 0x3F200C00, 0x38200000),
    ("LSE compare and swap", 0x3FA07C00, 0x08A07C00),
    ("sqrdmlah, sqrdmlsh", 0x9F20F400, 0x2E008400),
    ("SVE", 0x1E000000, 0x04000000),
    ("AES", 0xFF3E0C00, 0x4E280800),
    ("SHA, two registers", 0xFF3E0C00, 0x5E280800),
)
# Newer than Armv8.0, each compiled for a CPU that has it: the checks must see every one.
BEYOND = {
    "dotprod": "declare <4 x i32> @llvm.aarch64.neon.udot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)\n"
    "define <4 x i32> @f(<4 x i32> %s, <16 x i8> %a, <16 x i8> %b) {\n"
    "  %r = call <4 x i32> @llvm.aarch64.neon.udot.v4i32.v16i8(<4 x i32> %s, <16 x i8> %a, <16 x i8> %b)\n"
    "  ret <4 x i32> %r\n}",
    "fullfp16": "define <8 x half> @f(<8 x half> %a, <8 x half> %b) {\n"
    "  %r = fadd <8 x half> %a, %b\n  ret <8 x half> %r\n}",
    "lse": "define i32 @f(ptr %p, i32 %v) {\n  %r = atomicrmw add ptr %p, i32 %v seq_cst\n  ret i32 %r\n}",
    "i8mm": "declare <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)\n"
    "define <4 x i32> @f(<4 x i32> %s, <16 x i8> %a, <16 x i8> %b) {\n"
    "  %r = call <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8(<4 x i32> %s, <16 x i8> %a, <16 x i8> %b)\n"
    "  ret <4 x i32> %r\n}",
    "sve": "define <vscale x 4 x i32> @f(<vscale x 4 x i32> %a, <vscale x 4 x i32> %b) {\n"
    "  %r = add <vscale x 4 x i32> %a, %b\n  ret <vscale x 4 x i32> %r\n}",
}
ON_PI5 = {"dotprod", "fullfp16", "lse"}


def unknown_instructions(native: bytes, extensions: str, folder) -> list[str]:
    path = folder / "object.o"
    path.write_bytes(native)
    done = subprocess.run(
        [find_objdump(), "-d", f"--mattr={extensions}", str(path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) > 3
    return [line for line in lines if "<unknown>" in line]


def code_words(native: bytes) -> list[int]:
    """The 32-bit words of every executable section of an ELF object."""
    headers_at = struct.unpack_from("<Q", native, 40)[0]
    size, count = struct.unpack_from("<HH", native, 58)
    words: list[int] = []
    for index in range(count):
        _, kind, flags, _, offset, length = struct.unpack_from("<IIQQQQ", native, headers_at + index * size)
        if kind == 1 and flags & 4:  # SHT_PROGBITS, SHF_EXECINSTR
            words += struct.unpack_from(f"<{length // 4}I", native, offset)
    return words


def later_instructions(native: bytes) -> set[str]:
    return {name for word in code_words(native) for name, mask, value in LATER if word & mask == value}


def compile_beyond(extension: str) -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(opt=2, cpu="generic", features=f"+{extension}")
    native: bytes = machine.emit_object(llvm.parse_assembly(BEYOND[extension]))
    return native


def board_object(board: str, kind: str) -> bytes:
    target = load_profile(board).target
    return build(target, target.isa, kind, USUAL_BITS if kind == "decoder" else WEIGHT_BITS)[0]


@pytest.mark.parametrize(("board", "kind"), OBJECTS)
def test_objdump_knows_every_instruction(board, kind, tmp_path):
    assert unknown_instructions(board_object(board, kind), EXTENSIONS[board], tmp_path) == []


@pytest.mark.parametrize("kind", ["kernels", "decoder"])
def test_a_pi4_object_has_nothing_of_later_architectures(kind):
    native = board_object("pi4", kind)
    assert len(code_words(native)) > 1000
    assert later_instructions(native) == set()


def test_a_pi5_object_uses_what_its_cpu_has():
    found = later_instructions(board_object("pi5", "decoder"))
    assert any(name.startswith("sdot") for name in found) and "LSE read-modify-write" in found
    allowed = re.compile("sdot|LSE|half-precision")
    assert all(allowed.match(name) for name in found), found


def test_an_i8mm_object_multiplies_matrices_and_stays_within_its_extensions(tmp_path):
    native = board_object("arm-i8mm", "linear")
    found = later_instructions(native)
    assert {"smmla, usmmla", "usdot, sudot, by element", "sdot, udot, by element"} <= found
    assert all(re.match("us|s(mmla|dot)|LSE|half-precision", name) for name in found), found
    assert unknown_instructions(native, EXTENSIONS["pi5"], tmp_path)


@pytest.mark.parametrize("extension", list(BEYOND))
def test_both_checks_catch_a_later_instruction(extension, tmp_path):
    native = compile_beyond(extension)
    assert unknown_instructions(native, EXTENSIONS["pi4"], tmp_path)
    assert later_instructions(native)
    assert bool(unknown_instructions(native, EXTENSIONS["pi5"], tmp_path)) == (extension not in ON_PI5)
    on_i8mm = extension in ON_PI5 | {"i8mm"}
    assert bool(unknown_instructions(native, EXTENSIONS["arm-i8mm"], tmp_path)) == (not on_i8mm)


def test_a_pi5_object_is_caught_on_a_pi4(tmp_path):
    assert unknown_instructions(board_object("pi5", "kernels"), EXTENSIONS["pi4"], tmp_path)
