from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgeawq.errors import UsageError
from edgeawq.quantize import harness
from edgeawq.quantize.harness import Question, read_score, run_tasks, score_continuations, split_batches
from edgeawq.quantize.llama import TorchDecoder
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import stream_model
from tests.quantize.runs import SHAPE
from tests.tiny_models import TinyCheckpoint, make_tiny_model


@pytest.fixture(scope="module")
def model() -> TinyCheckpoint:
    return make_tiny_model(1, quantized=False, **SHAPE)


def make_questions(count: int) -> list[Question]:
    """Random contexts of 1 … 40 tokens with continuations of 1 … 5."""
    lengths = torch.randint(1, 41, (count, 2)).tolist()
    return [
        (torch.randint(0, 320, (first,)).tolist(), torch.randint(0, 320, (1 + last % 5,)).tolist())
        for first, last in lengths
    ]


def test_likelihoods_are_those_of_the_whole_model(
    model: TinyCheckpoint, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "TOKENS_IN_MEMORY", 100)
    questions = make_questions(12)
    decoder = TorchDecoder(model)
    # A continuation that greedy decoding gives must be recognized as one.
    context = questions[0][0]
    greedy = [int(decoder(torch.tensor([context]))[0, -1].argmax())]
    questions[0] = (context, greedy)
    seen: list[tuple[int, int]] = []
    found = score_continuations(stream_model(model), questions, workers, lambda done, total: seen.append((done, total)))
    assert found[0][1]
    for (context, continuation), (likelihood, is_greedy) in zip(questions, found, strict=True):
        logits = decoder(torch.tensor([context + continuation]))[0].log_softmax(-1)[len(context) - 1 : -1]
        wanted = sum(float(row[token]) for row, token in zip(logits, continuation, strict=True))
        assert likelihood == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert is_greedy == bool((logits.argmax(-1) == torch.tensor(continuation)).all())
    assert seen[-1][0] == seen[-1][1]


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "TOKENS_IN_MEMORY", 10)
    assert list(split_batches([[0] * 4, [0] * 6, [0] * 1, [0] * 30, [0] * 2])) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert list(split_batches([])) == []


def test_long_contexts_lose_their_beginning(model: TinyCheckpoint, workers: Workers) -> None:
    limit = model.config.max_position_embeddings
    tokens = torch.randint(0, 320, (limit + 50,)).tolist()
    found = score_continuations(stream_model(model), [(tokens[:-3], tokens[-3:])], workers)
    wanted = score_continuations(stream_model(model), [(tokens[50:-3], tokens[-3:])], workers)
    assert found == wanted


def test_a_task_without_accuracy_is_named() -> None:
    assert (
        read_score("x", {"acc,none": 0.5, "acc_stderr,none": "N/A", "acc_norm,none": 0.25}).normalized_accuracy == 0.25
    )
    with pytest.raises(UsageError, match="the task x has no accuracy"):
        read_score("x", {"word_perplexity,none": 3.0, "alias": "x"})


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.mark.filterwarnings("ignore")
def test_a_task_of_ones_own(
    model: TinyCheckpoint,
    workers: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"what is {n}?", "choices": ["one", "two"], "answer": n % 2} for n in range(20)]
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=data))
    source = stream_model(model)
    found = run_tasks(source, model, ["tiny_choice"], workers, task_folder=tmp_path / "tasks")
    assert found["tiny_choice"].accuracy * 20 == pytest.approx(round(found["tiny_choice"].accuracy * 20))
    assert found["tiny_choice"].normalized_accuracy is not None
    assert found["tiny_choice"].standard_error is not None
    assert "it/s" not in capfd.readouterr().err  # its progress bars would tear ours
    with pytest.raises(UsageError, match="no task 'absent_task'"):
        run_tasks(source, model, ["absent_task"], workers, task_folder=tmp_path / "tasks")
