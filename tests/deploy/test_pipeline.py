"""What `edgeawq push` builds, and what it finds built already. Quantizing and packing are stood in for."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import click
import pytest

import edgeawq.cli.pipeline as pipeline
from device_profiles.detect import find_profile
from edgeawq.cli.console import get_error_console
from edgeawq.errors import QuantizationError, UsageError
from tests.deploy.fakes import make_bundle


class Works:
    """Stands in for the quantizer and the packager, and counts their work."""

    def __init__(self) -> None:
        self.quantized: list[str] = []
        self.packed: list[tuple[str, str]] = []
        self.fail = False

    def quantize(self, reference: str, folder: Path, *_: object) -> None:
        self.quantized.append(reference)
        folder.mkdir()
        if self.fail:
            raise QuantizationError("no")
        shutil.copytree(reference, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))

    def pack(self, checkpoint: str, profile: Any, folder: Path, *_: object) -> None:
        self.packed.append((Path(checkpoint).name, profile.name))
        make_bundle(folder, seed=1)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    works = Works()
    monkeypatch.setattr(pipeline, "_quantize", works.quantize)
    monkeypatch.setattr(pipeline, "_pack", works.pack)

    class Opened:
        def __init__(self, reference: str) -> None:
            config = json.loads((Path(reference) / "config.json").read_text())
            self.quantization = config.get("quantization_config")

    monkeypatch.setattr("edgeawq.checkpoints.open_model.open_model", Opened)
    return works


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "My model!"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(2_000_000))
    return folder


def build(reference: Path | str, profile: str = "pi4") -> Path:
    return pipeline.build_bundle(str(reference), profile, get_error_console(), quiet=True)


def test_a_bundle_is_taken_as_it_is(tmp_path: Path, works: Works) -> None:
    bundle = make_bundle(tmp_path / "b.edgeawq")
    assert pipeline.find_bundle(str(bundle), "pi4") == bundle == build(bundle)
    assert works.packed == []


def test_builds_what_is_missing_and_only_once(model: Path, works: Works) -> None:
    assert pipeline.find_bundle(str(model), "pi4") is None
    bundle = build(model)
    assert bundle.name == "My-model-pi4.edgeawq" and pipeline.is_bundle(bundle)
    assert works.quantized == [str(model)] and works.packed == [("My-model-awq", "pi4")]
    assert pipeline.find_bundle(str(model), "pi4") == bundle == build(model)
    other = build(model, "pi5")
    assert other != bundle and works.quantized == [str(model)], "another device needs no second quantization"
    assert works.packed[1:] == [("My-model-awq", "pi5")]


def test_a_checkpoint_is_not_quantized(model: Path, works: Works) -> None:
    (model / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    bundle = build(model)
    assert works.quantized == [] and works.packed == [("My model!", "pi4")]
    assert pipeline.find_bundle(str(model), "pi4") == bundle


def test_a_changed_file_makes_everything_anew(model: Path, works: Works) -> None:
    first = build(model)
    (model / "config.json").write_text('{"x": 1}')
    assert pipeline.find_bundle(str(model), "pi4") is None
    assert build(model) != first and len(works.quantized) == 2
    weights = model / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    time.sleep(0.01)
    weights.write_bytes(data)
    assert weights.stat().st_size == before.st_size
    assert pipeline.find_bundle(str(model), "pi4") is None


def test_a_failure_leaves_nothing_behind(model: Path, works: Works, isolated_home: Path) -> None:
    works.fail = True
    with pytest.raises(QuantizationError):
        build(model)
    assert list((isolated_home / "cache" / "checkpoints").iterdir()) == []
    works.fail = False
    build(model)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no model"):
        pipeline.find_bundle(str(tmp_path / "nothing"), "pi4")


def test_fingerprints_are_about_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert pipeline.fingerprint(tmp_path / "a") == pipeline.fingerprint(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert pipeline.fingerprint(tmp_path / "a") != pipeline.fingerprint(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="no files"):
        pipeline.fingerprint(tmp_path / "c")


def test_large_files_are_hashed_once(tmp_path: Path, isolated_home: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(pipeline._HashMemory.SMALL_BYTES + 1))
    first = pipeline.fingerprint(large)
    memory = isolated_home / "cache" / "hashes" / "files.json"
    assert str(large) in memory.read_text()
    remembered = json.loads(memory.read_text())
    remembered[str(large)][3] = "f" * 64
    memory.write_text(json.dumps(remembered))
    assert pipeline.fingerprint(large) != first, "what is remembered must be used"
    memory.write_text("[broken")
    assert pipeline.fingerprint(large) == first


def test_the_profile_s_code_is_part_of_the_key(model: Path) -> None:
    content = pipeline.fingerprint(model)
    paths = {pipeline._bundle_path(content, "m", find_profile(name)) for name in ("pi4", "pi5", "laptop-avx2")}
    assert len(paths) == 3


def test_a_quantization_that_fails_ends_with_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edgeawq.py").write_text("import sys; print(sys.argv[1:], file=sys.stderr); sys.exit(7)")
    monkeypatch.setattr(pipeline.edgeawq, "__file__", str(tmp_path / "edgeawq" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    for quiet in (True, False):
        with pytest.raises(click.exceptions.Exit) as caught:
            pipeline._quantize("the model", tmp_path / "out", get_error_console(), quiet)
        assert caught.value.exit_code == 7
        assert f"['quantize', 'the model', '-o', '{tmp_path / 'out'}', '--as-a-step']" in capfd.readouterr().err
