"""What is refused before the first byte is sent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgeawq.deploy.device_facts import DeviceFacts, PythonFact
from edgeawq.deploy.preflight import check_fit
from edgeawq.errors import DeviceUnfitError
from packager.manifest import Manifest
from packager.manifest_reader import read_manifest
from tests.deploy.fakes import make_bundle

PI4_FLAGS = "fp asimd evtstrm crc32 cpuid"
PYTHON = PythonFact("/usr/bin/python3", (3, 11, 2), 64, "aarch64", "glibc-2.36")


def make_facts(flags: str, *, machine: str = "aarch64") -> DeviceFacts:
    cpuinfo = f"processor\t: 0\nFeatures\t: {flags}\n" if flags else ""
    return DeviceFacts(
        "Linux", machine, "board", "/home/pi", "Debian", "", 4, 4 << 30, 3 << 30, 9 << 30, cpuinfo, (PYTHON,)
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(make_bundle(tmp_path / "bundle", machine="aarch64"))


def change_isa(manifest: Manifest, *isas: str) -> Manifest:
    return replace(manifest, kernels=tuple(replace(manifest.kernels[0], isa=isa) for isa in isas))


def test_a_bundle_for_this_cpu_passes(manifest: Manifest) -> None:
    assert check_fit(make_facts(PI4_FLAGS), PYTHON, manifest, where="pi4") == []
    assert check_fit(make_facts(PI4_FLAGS), PYTHON, change_isa(manifest, "neon_dotprod", "neon"), where="pi4") == []
    newer = make_facts(f"{PI4_FLAGS} asimddp")
    assert check_fit(newer, PYTHON, change_isa(manifest, "neon_dotprod"), where="pi5") == []


def test_a_cpu_that_lacks_instructions_is_refused_by_name(manifest: Manifest) -> None:
    with pytest.raises(DeviceUnfitError, match="asimddp") as caught:
        check_fit(make_facts(PI4_FLAGS), PYTHON, change_isa(manifest, "neon_dotprod"), where="pi4")
    assert "profile" in caught.value.remedy


def test_a_cpu_without_the_matrix_product_takes_the_dot_product_or_is_refused(manifest: Manifest) -> None:
    pi5 = make_facts(f"{PI4_FLAGS} asimddp")
    assert check_fit(pi5, PYTHON, change_isa(manifest, "neon_i8mm", "neon_dotprod"), where="pi5") == []
    with pytest.raises(DeviceUnfitError, match="i8mm"):
        check_fit(pi5, PYTHON, change_isa(manifest, "neon_i8mm"), where="pi5")
    assert (
        check_fit(make_facts(f"{PI4_FLAGS} asimddp i8mm"), PYTHON, change_isa(manifest, "neon_i8mm"), where="o6") == []
    )


def test_a_cpu_that_tells_nothing_is_left_to_the_health_check(manifest: Manifest) -> None:
    assert check_fit(make_facts(""), PYTHON, change_isa(manifest, "neon_dotprod"), where="board") == []


def test_another_machine_and_an_old_c_library_are_both_named(manifest: Manifest) -> None:
    old = replace(PYTHON, libc="glibc-2.19")
    with pytest.raises(DeviceUnfitError) as caught:
        check_fit(make_facts("", machine="x86_64"), old, manifest, where="board")
    assert re.search("aarch64.*x86_64.*glibc-2.19", caught.value.what)
