"""--jit: a bundle for another CPU runs here, and nothing is built where nothing is missing."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpu_kernels.cpu_flags import REQUIRED_CPU_FLAGS
from device_profiles.profile import load_profile
from edgeawq.cli import jit
from edgeawq.cli.jit import build_missing_kernel, choose_isa, describe_host
from edgeawq.errors import KernelError, MissingExtraError
from edgeawq.runtime.cpu import PROFILES, machine
from edgeawq.runtime.decoder import Decoder
from packager.pack import pack_checkpoint
from tests.runtime.native_bundles import pack_for_host, reference_logits
from tests.tiny_models import make_tiny_model

OTHER = "pi4" if machine() == "x86_64" else "laptop-avx2"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model, and its bundle for a machine that this one is not."""
    model = make_tiny_model(int(np.random.default_rng().integers(1 << 30)))
    folder = tmp_path_factory.mktemp("bundle") / "foreign.edgeawq"
    pack_checkpoint(model, load_profile(OTHER), folder)
    return model, folder


def test_a_bundle_for_another_machine_runs_with_kernels_built_here(foreign: tuple[Any, Path]) -> None:
    model, bundle = foreign
    with pytest.raises(KernelError) as caught:
        Decoder.open(bundle)
    assert "--jit" in caught.value.remedy and "--device" in caught.value.remedy
    kernel = build_missing_kernel(bundle)
    assert kernel is not None and kernel.isa.endswith("_portable")
    tokens = np.random.default_rng().integers(0, model.config.vocab_size, 40).tolist()
    with Decoder.open(bundle, n_threads=2, activations="float", kernel=kernel) as decoder:
        assert decoder.isa == kernel.isa
        expected = reference_logits(model, tokens)
        assert np.square(decoder.forward_all(tokens) - expected).sum() < 1e-9 * np.square(expected).sum()


def test_nothing_is_built_where_the_bundle_has_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(manifest: Any) -> Any:
        raise AssertionError("built")

    monkeypatch.setattr(jit, "_build", refuse)
    assert build_missing_kernel(pack_for_host(make_tiny_model(3), tmp_path / "own.edgeawq")) is None


def test_without_numba_the_message_says_what_to_install(
    foreign: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "numba":
            raise ModuleNotFoundError("No module named 'numba'", name="numba")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match="numba") as caught:
        build_missing_kernel(foreign[1])
    assert "pip install" in caught.value.remedy


def test_the_best_instruction_set_for_the_layout_and_the_cpu() -> None:
    avx2, vnni = frozenset(REQUIRED_CPU_FLAGS["avx2"]), frozenset(REQUIRED_CPU_FLAGS["avxvnni"])
    assert choose_isa("avx2", vnni, "x86_64") == "avxvnni"
    assert choose_isa("avx2", avx2, "x86_64") == "avx2"
    assert choose_isa("avx512", avx2, "x86_64") == "avx512vnni_portable"
    assert choose_isa("avx2", frozenset(), "x86_64") == "avx2_portable"
    assert choose_isa("neon", frozenset({"asimd"}), "aarch64") == "neon"
    assert choose_isa("neon", frozenset({"asimd", "asimddp"}), "aarch64") == "neon_dotprod"
    assert choose_isa("neon", frozenset({"asimd", "asimddp", "i8mm"}), "aarch64") == "neon_i8mm"
    assert choose_isa("neon", avx2, "x86_64") == "neon_portable"
    with pytest.raises(KernelError, match="layout 'other'"):
        choose_isa("other", avx2, "x86_64")


@pytest.mark.parametrize("isa", ["avx2", "avx2_portable", "neon_portable", "avx512vnni_portable", "neon"])
def test_the_target_is_this_machine(isa: str) -> None:
    assert describe_host(isa).machine == machine()


def test_the_profiles_that_a_remedy_names_are_there() -> None:
    assert set(PROFILES) == set(REQUIRED_CPU_FLAGS)
    for isa, name in PROFILES.items():
        profile = load_profile(name)
        assert profile.target.machine == ("x86_64" if isa.startswith("avx") else "aarch64")
        # what the profile's kernels need, a CPU with this instruction set has
        assert set(REQUIRED_CPU_FLAGS[profile.target.isa]) <= set(REQUIRED_CPU_FLAGS[isa])
