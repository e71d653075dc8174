"""The text side of a real bundle, and a whole conversation with a real decoder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeawq.errors import BundleError, ContextFullError
from edgeawq.runtime.bundle_text import DEFAULT_SAMPLING, open_bundle_text, read_json_file, read_sampling
from edgeawq.runtime.engine import open_engine
from edgeawq.runtime.golden import check_golden, record_golden
from edgeawq.runtime.sampler import SamplerSettings, make_sampler
from edgeawq.runtime.session import ChatSession
from packager.bundle import add_golden
from packager.manifest_reader import read_manifest
from tests.runtime.native_bundles import pack_for_host
from tests.tiny_models import make_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return pack_for_host(make_tiny_model(seed=5), tmp_path / "tiny.edgeawq")


def rewrite(bundle: Path, path: str, content: bytes) -> None:
    """Change a file and the size that the manifest has of it."""
    (bundle / path).write_bytes(content)
    document = json.loads((bundle / "manifest.json").read_text())
    for entry in document["files"]:
        if entry["path"] == path:
            entry["size"] = len(content)
    (bundle / "manifest.json").write_text(json.dumps(document))


def test_what_the_packer_wrote_is_read(bundle: Path) -> None:
    text = open_bundle_text(bundle)
    assert (text.model_name, text.device_name) == ("tiny-5", read_manifest(bundle).device.profile)
    assert text.sampling == SamplerSettings(temperature=0.7, top_k=40, top_p=DEFAULT_SAMPLING.top_p)
    assert text.stop_token_ids == {2}
    assert text.template.source is not None
    assert text.tokenizer.encode("<|im_start|>") == [1]


@pytest.mark.parametrize(
    "defaults, expected",
    [
        ({}, DEFAULT_SAMPLING),
        ({"do_sample": False, "temperature": 0.7}, SamplerSettings()),
        ({"do_sample": True, "temperature": 1.0, "top_p": None}, SamplerSettings(temperature=1.0, top_p=0.9)),
        ({"top_k": 5, "other": 1}, SamplerSettings(temperature=0.2, top_p=0.9, top_k=5)),
    ],
)
def test_sampling_defaults(defaults: dict[str, Any], expected: SamplerSettings) -> None:
    assert read_sampling(defaults) == expected


@pytest.mark.parametrize(
    "generation, message",
    [
        (b"[]", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"defaults": 3}', "not an object"),
        (b'{"bos_token": 3}', "bos_token"),
        (b'{"stop_token_ids": ["x"]}', "stop_token_ids"),
        (b'{"stop_token_ids": [true]}', "stop_token_ids"),
        (b'{"defaults": {"temperature": -1}}', "temperature is -1"),
        (b'{"defaults": {"do_sample": false, "repetition_penalty": "x"}}', "repetition_penalty is 'x'"),
        (b'{"defaults": {"top_k": "many"}}', "top_k is 'many'"),
        (b'{"add_bos_token": true, "bos_token": "<none>"}', "no token '<none>'"),
    ],
)
def test_generation_defaults_that_make_no_sense(bundle: Path, generation: bytes, message: str) -> None:
    rewrite(bundle, "generation.json", generation)
    with pytest.raises(BundleError) as caught:
        open_bundle_text(bundle)
    assert message in caught.value.what and caught.value.remedy


def test_a_file_of_another_size_is_refused(bundle: Path) -> None:
    with (bundle / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match="the manifest says"):
        open_bundle_text(bundle)


def test_a_role_without_a_file(bundle: Path) -> None:
    with pytest.raises(BundleError, match="golden file of .* is missing"):
        read_json_file(bundle, read_manifest(bundle), "golden")
    with pytest.raises(BundleError, match="no golden test"):
        check_golden(bundle)


def test_golden_of_a_real_bundle(bundle: Path) -> None:
    golden = record_golden(bundle, 12)
    add_golden(bundle, golden)
    for n_threads in (1, 2):
        result = check_golden(bundle, n_threads=n_threads)
        assert result.ok and list(result.expected) == golden["expected_tokens"]
    wrong = [(token + 7) % 300 for token in golden["expected_tokens"]]
    rewrite(bundle, "golden.json", json.dumps({**golden, "expected_tokens": wrong}).encode())
    assert not check_golden(bundle).ok


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_tokens": []},
        {"expected_tokens": "x"},
        {"expected_tokens": [1.5]},
        {"expected_tokens": [-1]},
        {"prompt_tokens": [1 << 40]},
        {"prompt_tokens": [1] * 5000},
    ],
)
def test_a_golden_file_that_makes_no_sense(bundle: Path, change: dict[str, Any]) -> None:
    add_golden(bundle, {"prompt_tokens": [1], "expected_tokens": [1], **change})
    with pytest.raises(BundleError):
        check_golden(bundle)


def test_a_conversation_with_a_real_decoder_reuses_its_cache(bundle: Path) -> None:
    """Two turns with reuse give the very tokens that one long prompt gives."""
    greedy = make_sampler(SamplerSettings())
    with open_engine(bundle, context_length=400, n_threads=1, activations="float") as engine:
        session = ChatSession(engine)
        list(session.reply("what is the capital", greedy, max_new_tokens=20))
        used = engine.decoder.position
        second = [
            token for piece in session.reply("and of one?", greedy, max_new_tokens=20) for token in piece.token_ids
        ]
        assert session.last_stats is not None and session.last_stats.reused_tokens >= min(used, 20)
        prompt = session._cached[: session.last_stats.reused_tokens + session.last_stats.prompt_tokens]
        engine.decoder.rewind(0)
        logits = engine.decoder.forward(prompt)
        again = []
        for _ in second:
            again.append(int(logits.argmax()))
            if again[-1] in engine.stop_token_ids:
                break
            logits = engine.decoder.forward([again[-1]])
        assert again == second


def test_a_context_that_is_too_small_for_the_question(bundle: Path) -> None:
    with open_engine(bundle, context_length=16, n_threads=1) as engine:
        session = ChatSession(engine)
        with pytest.raises(ContextFullError, match="room for 16"):
            list(session.reply("a question " * 10, make_sampler(SamplerSettings())))


def test_running_a_bundle_imports_nothing_that_it_does_not_need(bundle: Path) -> None:
    """What `edgeawq run` imports decides how long a cold start takes."""
    code = f"""
import sys
sys.argv = ["edgeawq", "run", {str(bundle)!r}, "--prompt", "what is the capital", "--max-tokens", "4"]
from edgeawq.cli.main import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
unwanted = {{"rich", "prompt_toolkit", "numba", "torch", "transformers", "paramiko", "markdown_it", "pygments",
            "asyncio", "numpy.random", "safetensors", "gguf", "edgeawq.checkpoints"}} & set(sys.modules)
assert not unwanted, unwanted
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
