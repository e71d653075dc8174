from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.target import ISAS, Target, parse_target
from edgeawq.errors import ProfileError

ARM = "aarch64-unknown-linux-gnu"
FEATURES = st.lists(st.from_regex(r"[+-][a-z0-9][a-z0-9_.-]{0,10}", fullmatch=True), max_size=5)


@given(cpu=st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,15}", fullmatch=True), features=FEATURES, isa=st.sampled_from(ISAS))
def test_text_and_target_are_inverse(cpu: str, features: list[str], isa: str) -> None:
    machine = "aarch64" if isa.startswith("neon") else "x86_64"
    target = Target(f"{machine}-unknown-linux-gnu", cpu, tuple(features), isa)
    assert parse_target(str(target)) == target
    assert target.machine == machine


def test_features_as_llvm_takes_them() -> None:
    assert Target(ARM, "cortex-a72", ("+neon", "-aes"), "neon").feature_string == "+neon,-aes"


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "isa", "named"),
    [
        ("arm64", "cortex-a72", (), "neon", "arm64"),
        (ARM, "cortex a72", (), "neon", "cortex a72"),
        (ARM, "cortex-a72", ("neon",), "neon", "'neon'"),
        (ARM, "cortex-a72", ("+ne on",), "neon", "+ne on"),
        (ARM, "cortex-a72", (), "sve", "sve"),
        (ARM, "cortex-a72", (), "avx2", "x86_64"),
        ("x86_64-unknown-linux-gnu", "x86-64-v3", (), "neon", "aarch64"),
    ],
)
def test_wrong_parts_are_named(triple: str, cpu: str, features: tuple[str, ...], isa: str, named: str) -> None:
    with pytest.raises(ProfileError) as caught:
        Target(triple, cpu, features, isa)
    assert named in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "a:b", f"{ARM}:cortex-a72:+neon", f"{ARM}:cortex-a72:+neon:neon:more"])
def test_text_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match="not a target"):
        parse_target(text)
