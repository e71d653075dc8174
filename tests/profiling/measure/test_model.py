"""A tiny bundle measured on this machine: traces, phases, the whole document, and the way over a pipe."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cpu_kernels import abi
from cpu_kernels.build import build_probe
from edgeawq.cli import profile as profile_command
from edgeawq.errors import ProfileError
from edgeawq.profiling.json_values import from_json
from edgeawq.profiling.measure import conditions, model, plan, system
from edgeawq.profiling.measure.cold_start import run_cold_start
from edgeawq.profiling.measure.costs import StepShape, estimate_step, list_linears
from edgeawq.profiling.measure.device import ProfileOptions, measure_device
from edgeawq.profiling.measure.generation import decoder_of, fill_cache, plain_tokens, time_tokens
from edgeawq.profiling.measure.phases import Surroundings, measure_decode, measure_prefill
from edgeawq.profiling.measure.plan import Budget, Progress
from edgeawq.profiling.measure.trace import TRACED, Tracer
from edgeawq.profiling.measure.wire import read_probe, serve_profile
from edgeawq.profiling.schema import Note, Profile, dump_profile, parse_profile
from edgeawq.runtime.engine import Engine, open_engine
from tests.cpu_kernels.native_kernels import host_target
from tests.profiling.example import make_profile
from tests.profiling.measure import machines
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model

SMALL = Budget(0.05, 0.02, 5.0, (16, 100), (5, 40), 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_for_host(make_tiny_model(3), tmp_path_factory.mktemp("model") / "tiny.edgeawq")


@pytest.fixture(params=[1, 2])
def engine(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Engine]:
    with open_engine(bundle, n_threads=request.param, context_length=512) as opened:
        yield opened


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short measurements."""
    monkeypatch.setattr(plan, "BUDGETS", dict.fromkeys(("quick", "usual", "thorough"), SMALL))
    monkeypatch.setattr("edgeawq.profiling.measure.device.BUDGETS", plan.BUDGETS)
    monkeypatch.setattr("edgeawq.profiling.measure.bandwidth.LEAST_ARENA", 4 << 20)
    monkeypatch.setattr("edgeawq.profiling.measure.bandwidth.MOST_ARENA", 4 << 20)
    monkeypatch.setattr("edgeawq.profiling.measure.bandwidth.BUDGET_S", 0.001)
    monkeypatch.setattr("edgeawq.profiling.measure.compute.BUDGET_S", 0.001)
    monkeypatch.setattr(model, "IDLE_S", 0.05)


def test_a_traced_step_gives_the_same_bits_and_counts_every_operation(engine: Engine) -> None:
    decoder = decoder_of(engine)
    tokens = plain_tokens(decoder.config.vocab_size, 70)
    plain = [decoder.forward(tokens).copy(), decoder.forward([1]).copy()]
    decoder.rewind(0)
    tracer = Tracer(decoder)
    tracer.switch(True)
    assert not tracer.works
    traced = [decoder.forward(tokens).copy()]
    before = tracer.read()
    traced.append(decoder.forward([1]).copy())
    passed = tracer.read().since(before)
    for one, other in zip(plain, traced, strict=True):
        np.testing.assert_array_equal(one, other)
    layers = decoder.config.n_layers
    calls = dict(zip(TRACED, passed.calls.tolist(), strict=True))
    # another thread's last mark may come a moment after the step
    assert calls.pop("barrier") == pytest.approx(5 * layers + 3, abs=1)
    assert calls == {
        "embedding": 1, "norm": 2 * layers + 1, "qkv": layers, "attention": layers, "merge": layers, "o": layers,
        "gate_up": layers, "quantize": layers, "down": layers, "head": 1,
    }  # fmt: skip
    assert (passed.ticks >= 0).all() and passed.ticks.sum() > 0
    assert passed.counter > 0


def test_nothing_is_traced_when_it_is_off(engine: Engine) -> None:
    decoder = decoder_of(engine)
    tracer = Tracer(decoder)
    tracer.switch(True)
    tracer.switch(False)
    decoder.forward([1])
    assert not tracer.works and not tracer.read().words.any()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 300])
def test_a_filled_cache_goes_on_like_any_other(engine: Engine, count: int) -> None:
    decoder = decoder_of(engine)
    fill_cache(decoder, count)
    assert decoder.position == count
    assert np.isfinite(decoder.forward([2])).all()
    if count > 64:
        rows = decoder_of(engine).export_layer(1, count)
        np.testing.assert_array_equal(rows[:, :, 64:count], rows[:, :, : count - 64])


def test_tokens_are_timed_in_the_runtime_s_own_loop(engine: Engine) -> None:
    decoder = decoder_of(engine)
    fill_cache(decoder, 30)
    times = time_tokens(engine, 6)
    assert len(times) == 6 and decoder.position == 30
    for token in times:
        assert token.marks is None
        assert 0 < token.forward_seconds + token.sampling_seconds <= token.seconds


def test_a_phase_adds_up_to_its_step(engine: Engine) -> None:
    around = Surroundings((), ())
    decode, prefill = measure_decode(engine, 40, 0.05, around), measure_prefill(engine, 0.05, around)
    assert decode is not None and prefill is not None
    for phase in (decode, prefill):
        # medians of parts need not add up to the median of the whole, but nearly do
        total = sum(operation.seconds.median for operation in phase.operations)
        assert 0.3 * phase.seconds_per_step.minimum < total < 1.5 * phase.seconds_per_step.maximum
        assert phase.bytes_per_step == sum(operation.bytes for operation in phase.operations)
        assert phase.tokens_per_second.median > 0
    assert {operation.kind for operation in decode.operations} >= {"qkv", "attention", "head", "sampling", "python"}
    assert (decode.tokens_per_step, prefill.tokens_per_step) == (1, abi.MAX_TOKENS)
    (head,) = [operation for operation in prefill.operations if operation.kind == "head"]
    assert head.calls == 1.0


def test_costs_of_a_step_are_those_of_its_matrices(bundle: Path) -> None:
    from packager.manifest_reader import read_manifest

    manifest = read_manifest(bundle)
    costs = estimate_step(manifest, StepShape(1, 10), kv_bits=16)
    facts = {fact.kind: fact for fact in list_linears(manifest)}
    for kind in ("qkv", "o", "gate_up", "down", "head"):
        assert costs[kind].operations == 2 * facts[kind].weights
        assert costs[kind].bytes == pytest.approx(facts[kind].bytes, rel=0.15)  # rows of padding, activations
    many = estimate_step(manifest, StepShape(64, 0), kv_bits=16)
    assert many["down"].operations == 64 * costs["down"].operations
    assert many["head"] == costs["head"]


def test_a_whole_profile_of_a_machine_with_sensors(bundle: Path, small: None, tmp_path: Path) -> None:
    root = machines.rapl(machines.orin(machines.pi5(tmp_path / "root")))
    seen: list[Progress] = []
    target = host_target()
    options = ProfileOptions(name="pi5", isa=target.isa, probe=build_probe(target, target.isa), bundle=bundle)
    profile = measure_device(options, on_progress=seen.append, root=root)
    assert parse_profile(dump_profile(profile)) == profile
    assert profile.complete and profile.device.name == "pi5"
    assert {point.kind for point in profile.memory} == {"read", "copy", "triad"}
    assert {point.kind for point in profile.compute} >= {"fp32", "int8_nibbles", "int8_bytes"}
    assert profile.clock and profile.barrier and profile.pages and profile.storage
    assert {roof.name for roof in profile.roofs} >= {"L1", "fp32", "int8_nibbles"}
    assert {(point.source, point.stage) for point in profile.energy} >= {
        ("ina3221 VDD_IN", "idle"),
        ("ina3221 VDD_IN", "decode"),
    }
    assert all(point.tokens_per_joule for point in profile.energy if point.source == "ina3221 VDD_IN" and point.tokens)
    found = profile.model
    assert found is not None and found.name == "tiny-3"
    assert {phase.phase for phase in found.phases} == {"decode", "prefill"}
    assert [point.context_tokens for point in found.decode_by_context] == [16, 100]
    assert [point.prompt_tokens for point in found.first_token] == [5, 40]
    assert [start.cache_bypassed for start in found.cold_start][0] is False
    assert all(start.seconds.median >= start.first_token_seconds for start in found.cold_start)
    for phase in found.phases:
        for operation in phase.operations:
            assert (operation.share_of_roof is not None) == (operation.memory_roof is not None)
    assert len(profile.samples) == len({progress.stage for progress in seen}) - 1  # all but "done"
    assert [progress.share for progress in seen] == sorted(progress.share for progress in seen)


def test_without_probes_the_model_is_measured_all_the_same(bundle: Path, small: None, tmp_path: Path) -> None:
    profile = measure_device(ProfileOptions(bundle=bundle, probe_missing="no numba"), root=machines.pi5(tmp_path))
    assert ("probes", "no numba") in {(gap.what, gap.reason) for gap in profile.unavailable}
    assert profile.roofs == () and profile.memory == ()
    assert profile.model is not None and profile.model.phases
    assert all(operation.share_of_roof is None for operation in profile.model.phases[0].operations)
    assert parse_profile(dump_profile(profile)) == profile


def test_ctrl_c_keeps_what_was_measured(
    bundle: Path, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "measure_prefill", interrupt)
    profile = measure_device(ProfileOptions(bundle=bundle), root=machines.pi5(tmp_path))
    assert not profile.complete
    assert profile.model is not None
    assert [phase.phase for phase in profile.model.phases] == ["decode"]
    assert parse_profile(dump_profile(profile)) == profile


def test_kernels_without_a_trace_are_told_apart(
    bundle: Path, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Tracer, "switch", lambda self, on: None)
    profile = measure_device(ProfileOptions(bundle=bundle), root=machines.pi5(tmp_path))
    assert "operations" in {gap.what for gap in profile.unavailable}
    assert profile.model is not None and profile.model.phases == () and profile.model.decode_by_context


def test_a_prompt_that_takes_too_long_is_left_out(
    bundle: Path, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model.ModelMeasurer, "_expect_prompt", lambda self, count: 1e6 if count > 5 else 0.0)
    profile = measure_device(ProfileOptions(bundle=bundle), root=machines.pi5(tmp_path))
    assert profile.model is not None
    assert [point.prompt_tokens for point in profile.model.first_token] == [5]
    assert "first_token" in {gap.what for gap in profile.unavailable}


def test_a_new_process_comes_to_its_first_token(bundle: Path) -> None:
    seconds, parts = run_cold_start(bundle, 1)
    assert 0 < sum(parts.values()) <= seconds
    assert set(parts) == {"import", "open", "first_token"}


def test_a_new_process_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="failed to start"):
        run_cold_start(tmp_path / "nothing", 1)


def test_the_way_over_a_pipe(bundle: Path, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = machines.pi5(tmp_path)
    monkeypatch.setattr(system, "ROOT", root)
    monkeypatch.setattr(conditions.system, "ROOT", root)
    target = host_target()
    probe = build_probe(target, target.isa)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as host, (tmp_path / "out").open("wb") as sink:

        def send() -> None:
            host.write(len(probe).to_bytes(8, "big") + probe)
            host.flush()

        threading.Thread(target=send, daemon=True).start()
        assert serve_profile(ProfileOptions(name="device", bundle=bundle), source, sink) == 0
    lines = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert set(lines[0]["kernel"]) == {"isa", "triple", "cpu", "features"}
    assert all("progress" in line for line in lines[1:-1]) and len(lines) > 3
    profile = from_json(Profile, lines[-1]["profile"], "")
    assert profile.complete and profile.model is not None and profile.memory


def test_a_probe_of_a_wrong_length_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"\0" * 7, (5 << 20).to_bytes(8, "big"), (9).to_bytes(8, "big") + b"short"):
        (tmp_path / "in").write_bytes(data)
        with (tmp_path / "in").open("rb") as source, pytest.raises(ProfileError):
            read_probe(source)


def test_the_command_measures_a_bundle_and_keeps_the_profile(
    bundle: Path, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = host_target()
    monkeypatch.setattr(
        "edgeawq.cli.profile_measure._build_own_probe", lambda bundle: (target.isa, build_probe(target, target.isa), "")
    )
    monkeypatch.setattr("edgeawq.deploy.cache.cache_folder", lambda name: tmp_path / "cache" / name)
    arguments = ["--bundle", str(bundle), "--quick", "--json", "-"]
    result = CliRunner().invoke(profile_command.command, arguments, standalone_mode=False)
    assert result.exception is None, result.output
    profile = parse_profile(result.stdout.encode())
    assert profile.device.name == "host" and profile.model is not None
    (kept,) = (tmp_path / "cache" / "profiles" / "host").iterdir()
    assert parse_profile(kept.read_bytes()) == profile
    assert "decode" in result.stderr and "100%" in result.stderr


def test_a_push_can_measure_the_device_and_is_not_harmed_by_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeawq.cli import profile_measure
    from edgeawq.cli.push import _Link
    from edgeawq.deploy.inventory import Device

    class Display:
        notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    stored: list[object] = []

    def store(profile: object) -> bool:
        stored.append(profile)
        return True

    monkeypatch.setattr(profile_measure, "store", store)
    monkeypatch.setattr(profile_measure, "measure_device_named", lambda name, **more: (name, more["amount"]))
    link = _Link(Device(name="pi5", transport="local", root=str(tmp_path)), 0, Display())  # type: ignore[arg-type]
    link.measure(None)
    assert stored == [("pi5", "quick")] and Display.notes == []

    def fail(name: str, **more: object) -> None:
        raise ProfileError("it went away")

    monkeypatch.setattr(profile_measure, "measure_device_named", fail)
    link.measure(None)
    assert len(stored) == 1 and "it went away" in Display.notes[0]


def test_what_an_emulated_device_does_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgeawq.cli.profile_measure import store

    monkeypatch.setenv("EDGEAWQ_CACHE", str(tmp_path / "cache"))
    emulated = replace(make_profile(), notes=(Note("emulated", "", 0.0, "its programs are interpreted by qemu-arm"),))
    assert not store(emulated) and not (tmp_path / "cache").exists()
    assert store(make_profile()) and list((tmp_path / "cache").rglob("*.json"))


def test_a_slow_device_reads_a_prompt_of_one_step(engine: Engine) -> None:
    prefill = measure_prefill(engine, 0.0, Surroundings((), ()))
    assert prefill is not None
    assert prefill.context_tokens == abi.MAX_TOKENS // 2
    assert prefill.seconds_per_step.repetitions == prefill.untraced_seconds_per_step.repetitions == 1
    (qkv,) = [operation for operation in prefill.operations if operation.kind == "qkv"]
    assert qkv.calls == decoder_of(engine).config.n_layers
