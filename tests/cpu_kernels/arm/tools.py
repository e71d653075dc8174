"""The programs these tests need, and how to get them."""

from __future__ import annotations

import shutil

import pytest


def find_program(names: tuple[str, ...], package: str) -> str:
    """The first of `names` that is installed; skips the test, saying what to install, where none is."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"{names[0]} is not installed: sudo apt-get install {package}")


def find_qemu() -> str:
    return find_program(("qemu-aarch64-static", "qemu-aarch64"), "qemu-user-static")


def find_lld() -> str:
    return find_program(("ld.lld", "ld.lld-22", "ld.lld-19"), "lld")


def find_objdump() -> str:
    return find_program(("llvm-objdump", "llvm-objdump-22", "llvm-objdump-19"), "llvm")
