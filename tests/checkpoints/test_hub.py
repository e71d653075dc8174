from __future__ import annotations

import fnmatch
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import errors

from edgeawq.checkpoints.hub import UNWANTED_FILES, WANTED_FILES
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import CheckpointError, MissingExtraError, UnsafeFileError
from tests.tiny_models import make_tiny_hf_checkpoint

# The hub library's HTTP client: httpx in one version, another name in the next.
CLIENT = sys.modules[errors.HTTPError.__module__.split(".")[0]]


def answer(status: int):
    return CLIENT.Response(status, request=CLIENT.Request("GET", "https://huggingface.co/api/models/org/name"))


def test_a_hub_id_is_downloaded_and_opened(tmp_path, monkeypatch):
    folder = make_tiny_hf_checkpoint(tmp_path / "snapshots" / "0123abcd", 1)
    calls = []

    def download(repo_id, **options):
        calls.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_model("org/Some.Model-1B").name == "Some.Model-1B"
    assert calls == [("org/Some.Model-1B", {"allow_patterns": WANTED_FILES, "ignore_patterns": UNWANTED_FILES})]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("config.json", True),
        ("model.safetensors.index.json", True),
        ("chat_template.jinja", True),
        ("tokenizer.model", True),
        ("pytorch_model.bin", False),
        ("modeling_custom.py", False),
        ("original/consolidated.00.pth", False),
        ("onnx/config.json", False),
        ("consolidated.safetensors", False),
        ("model.gguf", False),
    ],
)
def test_only_a_checkpoints_files_are_wanted(name, wanted):
    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    assert (matches(WANTED_FILES) and not matches(UNWANTED_FILES)) is wanted


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (errors.LocalEntryNotFoundError("offline"), "out of reach", "hf download org/name --local-dir name"),
        (errors.OfflineModeIsEnabled("offline"), "out of reach", "embedded:smollm2-135m-instruct"),
        (ConnectionError("refused"), "out of reach", "hf download"),
        (errors.GatedRepoError("gated", response=answer(403)), "licence", "hf auth login"),
        (errors.RepositoryNotFoundError("none", response=answer(404)), "no hub model org/name", "check the name"),
        (errors.HfHubHTTPError("too many requests", response=answer(429)), "too many requests", "hf download"),
        (CLIENT.ReadTimeout("timed out"), "timed out", "hf download"),
        (OSError(28, "No space left on device"), "No space left", "hf download"),
    ],
)
def test_what_can_go_wrong_says_what_to_do(monkeypatch, error, words, remedy):
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model("org/name")
    assert remedy in caught.value.remedy


def test_a_model_without_safetensors(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UnsafeFileError, match="no safetensors"):
        open_model("org/name")


def test_without_the_library_the_remedy_is_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError) as caught:
        open_model("org/name")
    assert caught.value.remedy == "pip install 'edgeawq[host]'"


def test_offline_for_real(tmp_path):
    code = (
        "from edgeawq.checkpoints.open_model import open_model\n"
        "from edgeawq.errors import CheckpointError\n"
        "try: open_model('org/name')\n"
        "except CheckpointError as error: print(error.what)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "out of reach" in done.stdout
