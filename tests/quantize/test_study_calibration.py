from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeawq.errors import UsageError
from edgeawq.quantize.calibration import make_encoder, read_documents
from edgeawq.quantize.scores import EvaluationSetting
from edgeawq.quantize.study_calibration import Trials, split_domain, study_shift, study_size
from tests.quantize.runs import SHAPE, make_text, quick_settings, write_text
from tests.tiny_models import TinyCheckpoint, make_tiny_model

SETTING = EvaluationSetting(256, 128, 128)


@pytest.fixture(scope="module")
def model() -> TinyCheckpoint:
    return make_tiny_model(1, quantized=False, **SHAPE)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_nothing_is_in_both_parts(tmp_path: Path, model: TinyCheckpoint, suffix: str) -> None:
    text = tmp_path / f"text{suffix}"
    documents = [make_text(seed, 700) for seed in range(5)]
    text.write_text(
        "\n".join(json.dumps({"text": document}) for document in documents)
        if suffix == ".jsonl"
        else " ".join(documents)
    )
    folder = tmp_path / "work"
    folder.mkdir()
    domain = split_domain("a", text, model, SETTING, folder)
    encode = make_encoder(model.tokenizer, model.config)
    whole = [token for document in read_documents(text, None) for token in encode(document)]
    assert domain.chunks.flatten().tolist() == whole[:256]
    rest = [token for document in read_documents(domain.calibration, None) for token in encode(document)]
    assert len(rest) == domain.n_rest
    # Where a document was cut its next token may be another; from then on they are the same.
    assert rest[-400:] == whole[-400:]
    assert abs(len(rest) + 256 - len(whole)) <= 2


def test_too_little_text_is_refused(tmp_path: Path, model: TinyCheckpoint) -> None:
    text = write_text(tmp_path / "text.txt", 1, 600)
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(UsageError, match="256 to evaluate on and at least 512 to calibrate on"):
        split_domain("a", text, model, SETTING, folder)


def test_rows_of_both_studies(tmp_path: Path, model: TinyCheckpoint) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    domains = [
        split_domain(name, write_text(tmp_path / f"{name}.txt", seed, 3000), model, SETTING, folder)
        for seed, name in enumerate(("prose", "code"))
    ]
    trials = Trials(model, quick_settings(), folder, 2)
    steps: list[tuple[str, int, int]] = []
    rows = study_size(trials, domains[0], ["awq"], [256, 512], 2, lambda *step: steps.append(step))
    assert [(row["method"], row["tokens"]) for row in rows] == [("awq", 256), ("awq", 512)]
    assert all(float(str(row["perplexity"])) > 1 and float(str(row["spread"])) >= 0 for row in rows)
    assert steps[-1] == ("done", 4, 4)
    assert [step[1] for step in steps[:-1]] == sorted(step[1] for step in steps[:-1])
    shifted = study_shift(trials, domains, ["rtn"], lambda *step: None)
    assert [(row["calibrated"], row["evaluated"]) for row in shifted] == [
        ("prose", "prose"), ("prose", "code"), ("code", "prose"), ("code", "code"),
    ]  # fmt: skip
    # Rounding to nearest looks at no text: there is no penalty for the wrong one.
    assert [row["penalty"] for row in shifted] == [None, 0.0, 0.0, None]
    assert sorted(path.suffix for path in folder.iterdir()) == [".jsonl", ".jsonl"]
