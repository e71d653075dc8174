"""Multiple-choice accuracy through lm-evaluation-harness, where it is installed.

The harness asks for the likelihood of continuations; they are computed block by block like everything else here, so
that a model larger than memory can be asked too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.errors import EdgeawqError, MissingExtraError, UsageError
from edgeawq.quantize.calibration import make_encoder
from edgeawq.quantize.comparison import TaskScore
from edgeawq.quantize.llama import BlockWeights, RopeTables, make_rope, normalize, run_block
from edgeawq.quantize.parallel import Workers
from edgeawq.quantize.perplexity import StreamedModel, count_head_positions

# Tokens whose hidden states are kept while the blocks pass by.
TOKENS_IN_MEMORY = 1 << 16
# An accuracy's error has a formula; the harness leaves it out where this is 0.
BOOTSTRAPS = 100

# (tokens of context, tokens of continuation)
Question = tuple[list[int], list[int]]
MakeProgress = Callable[[int], Callable[[int, int], None]]


def check_harness() -> None:
    """Raise MissingExtraError unless lm-evaluation-harness is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm-eval", "tasks")


def score_continuations(
    model: StreamedModel,
    questions: Sequence[Question],
    workers: Workers,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[float, bool]]:
    """Log likelihood of every continuation after its context, and whether it is what greedy decoding gives.

    Contexts hold at least one token; what is longer than the model's context loses its beginning.
    """
    limit = model.config.max_position_embeddings
    sequences = [(context + continuation)[-limit:] for context, continuation in questions]
    lengths = [min(len(continuation), limit - 1) for _, continuation in questions]
    results: list[tuple[float, bool]] = []
    total = sum(map(len, sequences)) * (model.config.n_layers + 1)
    done = 0
    for first, last in split_batches(sequences):
        hidden = [F.embedding(torch.tensor(tokens)[None], model.embedding) for tokens in sequences[first:last]]
        n_tokens = sum(map(len, sequences[first:last]))
        rope = make_rope(model.config, max(map(len, sequences[first:last])), model.embedding.dtype)
        for layer in range(model.config.n_layers):
            weights = model.read_block(layer)

            def run(state: torch.Tensor, weights: BlockWeights = weights, rope: RopeTables = rope) -> torch.Tensor:
                positions = state.shape[1]
                return run_block(state, weights, model.config, RopeTables(rope.cos[:positions], rope.sin[:positions]))

            hidden = workers.run(run, hidden)
            done += n_tokens
            on_progress(done, total)
        tasks = list(zip(hidden, sequences[first:last], lengths[first:last], strict=True))
        results += workers.run(lambda task: score_continuation(model, *task), tasks)
        done += n_tokens
        on_progress(done, total)
    return results


def split_batches(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Ranges of sequences with at most TOKENS_IN_MEMORY tokens, at least one sequence each."""
    first, n_tokens = 0, 0
    for number, tokens in enumerate(sequences):
        if number > first and n_tokens + len(tokens) > TOKENS_IN_MEMORY:
            yield first, number
            first, n_tokens = number, 0
        n_tokens += len(tokens)
    if sequences:
        yield first, len(sequences)


def score_continuation(
    model: StreamedModel, hidden: torch.Tensor, tokens: list[int], length: int
) -> tuple[float, bool]:
    """Of the last `length` tokens, given hidden [1, positions, hidden_size] after the blocks."""
    states = normalize(hidden[0, -length - 1 : -1], model.final_norm, model.config.rms_norm_eps)
    targets = torch.tensor(tokens[-length:])
    step = count_head_positions(len(model.head))
    likelihood, is_greedy = 0.0, True
    for part, wanted in zip(states.split(step), targets.split(step), strict=True):
        logits = part @ model.head.T
        likelihood -= float(F.cross_entropy(logits, wanted, reduction="sum"))
        is_greedy &= bool((logits.argmax(-1) == wanted).all())
    return likelihood, is_greedy


def run_tasks(
    model: StreamedModel,
    checkpoint: Checkpoint,
    tasks: Sequence[str],
    workers: Workers,
    *,
    task_folder: Path | None = None,
    limit: int | None = None,
    make_progress: MakeProgress = lambda n_tokens: lambda done, total: None,
) -> dict[str, TaskScore]:
    """Accuracy on tasks of lm-evaluation-harness, by its names or from task files in a folder.

    Raises MissingExtraError without the harness, UsageError for a task that it does not know, that needs a download
    without a network, or that asks for generated text.
    """
    check_harness()
    with quiet_harness():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(task_folder) if task_folder is not None else None)
        unknown = [name for name in tasks if not manager.match_tasks([name])]
        if unknown:
            raise UsageError(
                f"lm-evaluation-harness has no task {unknown[0]!r}",
                remedy="list them with: lm_eval ls tasks ; your own task files go into --task-folder",
            )
        language_model = make_language_model(model, checkpoint, workers, make_progress)
        try:
            found = simple_evaluate(
                model=language_model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=BOOTSTRAPS
            )
        except EdgeawqError:
            raise
        except (OSError, ValueError, KeyError) as error:  # what the data set library raises for what it cannot get
            raise UsageError(
                f"the tasks {', '.join(tasks)} cannot be prepared: {error}",
                remedy="their data comes from the hub: with a network run it once, or give local tasks (--task-folder)",
            ) from error
    return {name: read_score(name, values) for name, values in found["results"].items()}


def read_score(name: str, values: dict[str, Any]) -> TaskScore:
    """The accuracy among a task's metrics, which the harness names "metric,filter"."""
    metrics = {key.partition(",")[0]: value for key, value in values.items()}
    accuracy = metrics.get("acc")
    if not isinstance(accuracy, float):
        raise UsageError(
            f"the task {name} has no accuracy (it has {', '.join(sorted(map(str, metrics)))})",
            remedy="choose multiple-choice tasks",
        )
    errors = metrics.get("acc_stderr")
    normalized = metrics.get("acc_norm")
    return TaskScore(
        accuracy,
        errors if isinstance(errors, float) else None,
        normalized if isinstance(normalized, float) else None,
    )


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep the harness's own progress bars and notes off the terminal, where ours are."""
    import logging

    from tqdm import tqdm

    begin = tqdm.__init__

    def begin_silently(bar: Any, *arguments: Any, **options: Any) -> None:
        begin(bar, *arguments, **{**options, "disable": True})

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    tqdm.__init__ = begin_silently
    try:
        yield
    finally:
        tqdm.__init__ = begin
        logging.disable(level)


def make_language_model(
    model: StreamedModel, checkpoint: Checkpoint, workers: Workers, make_progress: MakeProgress
) -> Any:
    """The model as what the harness calls a language model."""
    from lm_eval.api.model import TemplateLM

    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)

    class BlockwiseModel(TemplateLM):  # type: ignore[misc]
        """Answers the harness's questions for likelihoods; it generates nothing."""

        backend = "causal"

        @property
        def eot_token_id(self) -> int:
            """What stands for an empty context."""
            config = checkpoint.config
            first = config.bos_token_id if config.bos_token_id is not None else next(iter(config.eos_token_ids), 0)
            return int(first)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
            """Token ids of a text."""
            return encode(string)

        def _loglikelihood_tokens(
            self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: Any
        ) -> list[tuple[float, bool]]:
            questions = [(context, continuation) for _, context, continuation in requests]
            n_tokens = sum(len(context) + len(continuation) for context, continuation in questions)
            return score_continuations(model, questions, workers, make_progress(n_tokens))

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            """The likelihood of whole texts."""
            questions = [([self.eot_token_id], encode(request.args[0])) for request in requests]
            n_tokens = sum(len(continuation) for _, continuation in questions)
            return [score for score, _ in score_continuations(model, questions, workers, make_progress(n_tokens))]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            """Refused: only likelihoods are computed."""
            raise UsageError(
                "a task asks the model to write text; only multiple-choice tasks are answered",
                remedy="choose tasks such as arc_easy, hellaswag, piqa, winogrande",
            )

    return BlockwiseModel()
