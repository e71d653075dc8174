from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_profiles.profile import FIGURES, list_profiles, load_profile, parse_profile
from edgeawq.errors import ProfileError

SHIPPED = ["arm-i8mm", "laptop-avx2", "laptop-avx512", "orin-agx", "orin-nano", "pi4", "pi5"]
VALID = """
title = "A board"
[target]
triple = "aarch64-unknown-linux-gnu"
cpu = "cortex-a53"
features = ["+neon"]
isa = "neon"
[detect]
flags = ["asimd"]
[figures.cores]
value = 4
source = "counted"
[figures.memory_bytes]
value = 1000000000
source = "read off"
[figures.bandwidth_theory_bytes_per_s]
value = 6.4e9
source = "data sheet"
"""


LOOP = "[[loops]]\nbits = 4\ntokens = 1\ngroup_size = 64\ncycles = 5.2\nsource = 'counted'\n"


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def write_own(tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "edgeawq" / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text)


def test_shipped_profiles() -> None:
    assert list_profiles() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_has_a_value_and_a_source(name: str) -> None:
    profile = load_profile(name)
    given = {figure for figure in FIGURES if getattr(profile, figure) is not None}
    assert given == set(profile.sources)
    assert {figure for figure, needed in FIGURES.items() if needed} <= given
    assert profile.bandwidth_bytes_per_s is not None
    assert profile.bandwidth_source
    assert profile.detection.flags


@pytest.mark.parametrize("name", SHIPPED)
def test_measured_bandwidth_stays_below_theory(name: str) -> None:
    profile = load_profile(name)
    assert profile.bandwidth_theory_bytes_per_s is not None
    for figure in (profile.bandwidth_measured_bytes_per_s, profile.bandwidth_one_core_bytes_per_s):
        assert figure is None or figure <= profile.bandwidth_theory_bytes_per_s


@pytest.mark.parametrize(
    ("name", "isa"),
    [
        ("pi4", "neon"),
        ("pi5", "neon_dotprod"),
        ("orin-agx", "neon_dotprod"),
        ("arm-i8mm", "neon_i8mm"),
        ("laptop-avx2", "avx2"),
    ],
)
def test_instruction_sets(name: str, isa: str) -> None:
    assert load_profile(name).target.isa == isa


def test_llvm_knows_every_cpu_and_feature() -> None:
    # LLVM only warns about a name it does not know, on the error stream of the process.
    code = (
        "import sys; from llvmlite import binding as b\n"
        "from device_profiles.target import parse_target\n"
        "b.initialize_all_targets(); b.initialize_all_asmprinters()\n"
        "for text in sys.argv[1:]:\n"
        "    t = parse_target(text)\n"
        "    b.Target.from_triple(t.triple).create_target_machine(cpu=t.cpu, features=t.feature_string)\n"
    )
    targets = [str(load_profile(name).target) for name in SHIPPED]

    def complain(texts: list[str]) -> str:
        return subprocess.run([sys.executable, "-c", code, *texts], capture_output=True, text=True, check=True).stderr

    assert complain(targets) == ""
    assert "not a recognized" in complain(["aarch64-unknown-linux-gnu:cortex-a7200:+neon:neon"])


def test_own_profile_is_found_and_overrides(tmp_path: Path) -> None:
    write_own(tmp_path, "my-board", VALID)
    write_own(tmp_path, "pi4", VALID.replace("A board", "My own Pi"))
    assert list_profiles() == sorted([*SHIPPED, "my-board"])
    own = load_profile("my-board")
    assert (own.title, own.cores, own.target.cpu) == ("A board", 4, "cortex-a53")
    assert own.bandwidth_bytes_per_s == 6.4e9
    assert own.bandwidth_source == "data sheet"
    assert load_profile("pi4").title == "My own Pi"


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("pi6")
    assert "pi5" in caught.value.what
    assert "--list-devices" in caught.value.remedy


@pytest.mark.parametrize("name", ["../pi4", "PI4", "", "a/b", "x" * 80])
def test_a_name_is_not_a_path(name: str) -> None:
    with pytest.raises(ProfileError, match="not a profile name"):
        load_profile(name)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("title", "titel", "title"),
        ('cpu = "cortex-a53"\n', "", "cpu"),
        ("value = 4\n", "value = 0\n", "cores is 0"),
        ("value = 4\n", "value = 4.5\n", "whole number"),
        ("value = 4\n", 'value = "4"\n', "cores is '4'"),
        ("value = 4\n", "value = true\n", "cores is True"),
        ("value = 6.4e9\n", "value = nan\n", "bandwidth_theory"),
        ('source = "counted"\n', "", "source"),
        ('source = "counted"\n', 'source = " "\n', "source"),
        ("[figures.cores]", "[figures.kernels]", "cores"),
        ("[figures.memory_bytes]", "[figures.memory_gb]", "memory_bytes"),
        ("[detect]", "[detects]", "detects"),
        ('["asimd"]', '"asimd"', "flags"),
        ('isa = "neon"', 'isa = "avx2"', "x86_64"),
        ("[target]", "[target", "TOML"),
        (
            "[figures.memory_bytes]",
            "[figures.decode_efficiency]\nvalue = 1.2\nsource = 'x'\n[figures.memory_bytes]",
            "part of 1",
        ),
        ("[figures.cores]", "[[loops]]\nbits = 4\n[figures.cores]", "tokens"),
        ("[figures.cores]", LOOP.replace("5.2", "-5.2") + "[figures.cores]", "cycles is -5.2"),
        ("[figures.cores]", LOOP.replace("64", "64.5") + "[figures.cores]", "group_size is 64.5"),
        ("title", "loops = 3\ntitle", "list of tables"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(old: str, new: str, named: str) -> None:
    assert parse_profile("board", VALID.encode(), "board.toml").cores == 4
    text = VALID.replace(old, new)
    assert text != VALID
    with pytest.raises(ProfileError) as caught:
        parse_profile("board", text.encode(), "board.toml")
    assert named in caught.value.what


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ProfileError, match="not valid TOML"):
        parse_profile("board", b"title = '\xff'", "board.toml")
