from __future__ import annotations

import gc
import shutil
import threading

import numpy as np
import pytest

from cpu_kernels.build import build
from device_profiles.profile import load_profile
from edgeawq.checkpoints.config import RopeScaling
from edgeawq.errors import BundleError, ContextFullError, GenerationError, KernelError, UsageError
from edgeawq.runtime import decoder as decoder_module
from edgeawq.runtime.bundle import Bundle
from edgeawq.runtime.decoder import Decoder
from edgeawq.runtime.give_way import ThreadGovernor
from packager.pack import pack_checkpoint
from tests.cpu_kernels.native_kernels import host_target, normalized_error
from tests.runtime.native_bundles import pack_for_host, reference_logits
from tests.tiny_models import make_tiny_model

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
MODELS = {
    "gqa-tied": {"n_heads": 6, "n_kv_heads": 2, "head_dim": 32, "tie": True},
    "mha-untied": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 64, "tie": False},
    "mqa-odd": {"hidden": 160, "intermediate": 352, "n_heads": 4, "n_kv_heads": 1, "head_dim": 48, "group_size": 32},
    "bias-rope": {"attention_bias": True, "rope_scaling": LLAMA3, "n_heads": 6, "n_kv_heads": 3, "head_dim": 32},
    "head-4-bit": {"head_bits": 4, "tie": False},
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return make_tiny_model(int(np.random.default_rng().integers(1 << 30)), **MODELS[request.param])


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return pack_for_host(model, tmp_path_factory.mktemp("bundle") / "tiny.edgeawq")


@pytest.fixture(scope="module")
def one_bundle(tmp_path_factory):
    """One bundle for what does not depend on the model's shape."""
    return pack_for_host(make_tiny_model(3), tmp_path_factory.mktemp("bundle") / "tiny.edgeawq")


def random_tokens(decoder_or_model, count):
    vocab = decoder_or_model.config.vocab_size
    return np.random.default_rng().integers(0, vocab, count).tolist()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_float_activations_agree_with_torch(model, bundle, threads):
    tokens = random_tokens(model, 150)  # two whole steps of 64 tokens and a part; five blocks of keys
    expected = reference_logits(model, tokens)
    with Decoder.open(bundle, n_threads=threads, context_length=160, activations="float") as decoder:
        assert normalized_error(decoder.forward_all(tokens), expected) < 1e-9
        decoder.rewind(0)
        for token, logits in zip(tokens[:70], expected, strict=False):
            assert normalized_error(decoder.forward([token]), logits) < 1e-9


@pytest.mark.parametrize("threads", [1, 2])
def test_int8_activations_stay_close_to_torch(model, bundle, threads):
    tokens = random_tokens(model, 90)
    expected = reference_logits(model, tokens)
    with Decoder.open(bundle, n_threads=threads, activations="int8") as decoder:
        assert normalized_error(decoder.forward_all(tokens), expected) < 5e-4


@pytest.mark.parametrize("threads", [1, 3])
def test_an_int8_cache_stays_close_to_torch(model, bundle, threads):
    tokens = random_tokens(model, 90)
    expected = reference_logits(model, tokens)
    with (
        Decoder.open(bundle, n_threads=threads, kv_bits=8) as small,
        Decoder.open(bundle, n_threads=threads) as usual,
    ):
        assert normalized_error(small.forward_all(tokens), expected) < 1e-3
        head_dim = model.config.head_dim
        assert small.kv_cache_bytes_per_token * 2 == usual.kv_cache_bytes_per_token * (head_dim + 4) / head_dim
        small.rewind(0)
        for name in ("keys", "values", "key_scales", "value_scales"):
            getattr(small._buffers, name).view(np.uint8)[...] = 0x7F  # what lies there must not matter
        for token in tokens[:70]:
            logits = small.forward([token])
        assert normalized_error(logits, expected[69]) < 1e-3


def test_a_cache_of_other_bits_is_refused(one_bundle):
    with pytest.raises(UsageError, match="32 bits is not possible with int8"):
        Decoder.open(one_bundle, kv_bits=32)
    with pytest.raises(UsageError, match="use 32"):
        try:
            Decoder.open(one_bundle, kv_bits=8, activations="float")
        except UsageError as error:
            raise UsageError(error.remedy) from None


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 130])
def test_one_step_and_many_give_the_same(one_bundle, count):
    with Decoder.open(one_bundle, n_threads=2, activations="float") as decoder:
        tokens = random_tokens(decoder, count)
        at_once = decoder.forward(tokens).copy()
        assert decoder.position == count
        decoder.rewind(0)
        for token in tokens:
            one_by_one = decoder.forward([token])
        assert normalized_error(one_by_one, at_once) < 1e-9


def test_the_result_does_not_depend_on_what_was_there_before(one_bundle):
    with Decoder.open(one_bundle, n_threads=2) as decoder:
        tokens = random_tokens(decoder, 40)
        first = decoder.forward(tokens).copy()
        decoder.rewind(0)
        decoder.forward(random_tokens(decoder, 200))
        decoder.rewind(0)
        for name, array in vars(decoder._buffers).items():
            if name not in ("sync", "keys", "values") and isinstance(array, np.ndarray):
                array.view(np.uint8)[...] = 0xFF  # NaN in every float
        np.testing.assert_array_equal(decoder.forward(tokens), first)


def test_rewinding_forgets(one_bundle):
    with Decoder.open(one_bundle, activations="float") as decoder:
        prompt, first, second = (random_tokens(decoder, count) for count in (50, 20, 13))
        decoder.forward(prompt + second)
        expected = decoder.forward(first[:1]).copy()
        decoder.rewind(50)
        decoder.forward(first)
        decoder.rewind(50)
        decoder.forward(second)
        assert normalized_error(decoder.forward(first[:1]), expected) < 1e-9
        with pytest.raises(GenerationError, match="cannot go back"):
            decoder.rewind(decoder.position + 1)
        with pytest.raises(GenerationError, match="cannot go back"):
            decoder.rewind(-1)


def test_a_full_context_changes_nothing(one_bundle):
    with Decoder.open(one_bundle, context_length=37) as decoder:
        decoder.forward(random_tokens(decoder, 30))
        with pytest.raises(ContextFullError, match="30 of 37 are used"):
            decoder.forward(random_tokens(decoder, 8))
        assert decoder.position == 30
        decoder.forward(random_tokens(decoder, 7))
        with pytest.raises(ContextFullError):
            decoder.forward([1])


@pytest.mark.parametrize("tokens", [[-1], [1, 1 << 20], []])
def test_wrong_tokens_are_refused(one_bundle, tokens):
    with Decoder.open(one_bundle) as decoder, pytest.raises(GenerationError):
        decoder.forward(tokens)


def test_wrong_settings_are_refused(one_bundle):
    for settings in ({"context_length": 0}, {"context_length": 1 << 30}, {"n_threads": -1}, {"n_threads": 1000}):
        with pytest.raises(UsageError):
            Decoder.open(one_bundle, **settings)
    with pytest.raises(UsageError, match="activations"):
        Decoder.open(one_bundle, activations="int3")


def test_closing_stops_the_threads(one_bundle):
    before = threading.active_count()
    decoder = Decoder.open(one_bundle, n_threads=4)
    assert threading.active_count() == before + 3
    decoder.forward([1, 2, 3])
    decoder.close()
    decoder.close()
    assert threading.active_count() == before
    with pytest.raises(GenerationError, match="closed"):
        decoder.forward([1])


def test_a_forgotten_decoder_stops_its_threads(one_bundle):
    before = threading.active_count()
    decoder = Decoder.open(one_bundle, n_threads=3)
    decoder.forward([1])
    del decoder
    gc.collect()
    assert threading.active_count() == before


def test_many_short_steps_with_more_threads_than_cores(one_bundle):
    with (
        Decoder.open(one_bundle, n_threads=7, activations="float") as many,
        Decoder.open(one_bundle, n_threads=1, activations="float") as single,
    ):
        for _ in range(60):
            tokens = random_tokens(many, int(np.random.default_rng().integers(1, 6)))
            assert normalized_error(many.forward(tokens), single.forward(tokens)) < 1e-8


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_a_step_has_the_same_bits_with_any_number_of_threads(activations, one_bundle, monkeypatch):
    """Also while the number changes from step to step, as it does for a decoder that gives way."""
    rng = np.random.default_rng()

    class Moody(ThreadGovernor):
        def note(self, seconds):
            super().note(seconds)
            self.n_active = int(rng.integers(1, self.n_threads + 1))

    monkeypatch.setattr(decoder_module, "ThreadGovernor", Moody)
    with (
        Decoder.open(one_bundle, n_threads=5, activations=activations, give_way=True) as changing,
        Decoder.open(one_bundle, n_threads=1, activations=activations) as single,
    ):
        start = random_tokens(single, 100)  # so that attention is split over more than one part of the keys
        changing.forward(start)
        single.forward(start)
        for _ in range(40):
            token = random_tokens(single, 1)
            np.testing.assert_array_equal(changing.forward(token), single.forward(token))
        assert 0 < changing.steps_with_fewer_threads < 40
        assert single.steps_with_fewer_threads == 0


@pytest.mark.parametrize(("profile", "isa"), [("laptop-avx512", "avx512vnni"), ("pi5", "neon_dotprod")])
def test_bundles_for_other_devices_give_the_same_logits(profile, isa, tmp_path, monkeypatch):
    """The whole decoder with another device's layout and lanes, its instructions replaced by their meaning."""
    model = make_tiny_model(11, tie=False)
    pack_checkpoint(model, load_profile(profile), tmp_path / "other.edgeawq")
    native, _ = build(host_target(), f"{isa}_portable", "decoder")
    monkeypatch.setattr(decoder_module, "choose_kernel", lambda kernels: kernels[0])
    monkeypatch.setattr(Bundle, "kernel_object", lambda self, kernel: native)
    tokens = random_tokens(model, 70)
    with Decoder.open(tmp_path / "other.edgeawq", n_threads=2, activations="float") as decoder:
        assert normalized_error(decoder.forward_all(tokens), reference_logits(model, tokens)) < 1e-6
    with Decoder.open(tmp_path / "other.edgeawq", n_threads=2, activations="int8") as decoder:
        assert normalized_error(decoder.forward_all(tokens), reference_logits(model, tokens)) < 5e-4


def test_a_bundle_for_another_machine_is_refused(tmp_path):
    pack_checkpoint(make_tiny_model(5), load_profile("pi4"), tmp_path / "pi4.edgeawq")
    if host_target().machine == "aarch64":
        pytest.skip("this machine runs the Raspberry Pi's kernels")
    with pytest.raises(KernelError, match="no kernel of this bundle runs"):
        Decoder.open(tmp_path / "pi4.edgeawq")


def test_a_cpu_without_the_features_is_refused(one_bundle, monkeypatch):
    monkeypatch.setattr("edgeawq.runtime.native.own_cpu_flags", lambda: frozenset({"sse2", "fp"}))
    with pytest.raises(KernelError, match="this CPU lacks"):
        Decoder.open(one_bundle)


def test_a_damaged_bundle_is_refused(one_bundle, tmp_path):
    def copy(name):
        shutil.copytree(one_bundle, tmp_path / name)
        return tmp_path / name

    short = copy("short")
    with open(short / "weights.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(BundleError, match="1000 bytes"):
        Decoder.open(short)
    kernel = copy("kernel")
    native = next((kernel / "kernels").iterdir())
    native.write_bytes(b"MZ" + native.read_bytes()[2:])
    with pytest.raises(KernelError, match="not an ELF"):
        Decoder.open(kernel)
    with pytest.raises(BundleError):
        Decoder.open(tmp_path / "absent")


def test_memory_is_what_the_file_and_the_cache_take(one_bundle):
    with Decoder.open(one_bundle, context_length=64) as small, Decoder.open(one_bundle, context_length=128) as large:
        grown = large.memory_bytes - small.memory_bytes
        tables = 64 * small.config.head_dim // 2 * 4 * 2
        assert grown == 64 * small.kv_cache_bytes_per_token + tables
        assert small.bundle.weights.flags.writeable is False
