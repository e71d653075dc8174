"""What `edgeawq eval` does: open the models, score them one after another, compare them by layer, ask tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeawq.cli.eval_bundle import (
    check_bundle,
    is_bundle,
    measure_bundle_storage,
    open_bundle_engine,
    read_bundle_tokens,
    score_bundle,
)
from edgeawq.errors import UsageError

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from edgeawq.checkpoints.model import Checkpoint
    from edgeawq.quantize.comparison import Comparison, ModelResult, TaskScore
    from edgeawq.quantize.evaluate import ReferenceStates
    from edgeawq.quantize.parallel import Workers
    from edgeawq.quantize.scores import EvaluationSetting, TokenScores, Windows

# Tokens on which the models are compared layer by layer, and length of the pieces.
LAYER_TOKENS, LAYER_CHUNK = 2048, 512


@dataclass(frozen=True)
class Options:
    """What is measured, whatever the models."""

    text: Path
    setting: EvaluationSetting
    threads: int
    by_layer: bool
    tasks: tuple[str, ...]
    task_folder: Path | None
    task_limit: int | None


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: a checkpoint, or a bundle where that is None."""

    name: str
    checkpoint: Checkpoint | None

    @property
    def is_float(self) -> bool:
        """Whether others can be compared with it."""
        return self.checkpoint is not None and self.checkpoint.quantization is None and not self.is_analysis

    @property
    def is_analysis(self) -> bool:
        """Whether it was rounded to be looked at, and stored in float."""
        from edgeawq.checkpoints.analysis import read_analysis

        return self.checkpoint is not None and read_analysis(self.checkpoint.config) is not None

    @property
    def kind(self) -> str:
        """The word for its kind."""
        if self.checkpoint is None:
            return "bundle"
        if self.is_analysis:
            return "analysis"
        return "float" if self.is_float else "quantized"


def open_subjects(models: tuple[str, ...], reference: str | None, chunk: int) -> tuple[list[Subject], Subject | None]:
    """All models, and the one that is the reference; an explicit reference comes first where it is not listed."""
    from edgeawq.checkpoints.open_model import open_model

    def open_one(name: str) -> Subject:
        if is_bundle(name):
            check_bundle(name, chunk)
            return Subject(name, None)
        return Subject(name, open_model(name))

    subjects = [open_one(name) for name in dict.fromkeys(models)]
    if reference is None:
        floats = [subject for subject in subjects if subject.is_float]
        return subjects, floats[0] if floats and len(subjects) > 1 else None
    chosen = next((subject for subject in subjects if subject.name == reference), None)
    if chosen is None:
        chosen = open_one(reference)
        subjects.insert(0, chosen)
    if chosen.checkpoint is None:
        raise UsageError(
            f"the reference {reference} is a bundle; it must be a float model or a checkpoint",
            remedy="give the float model that the bundle was made from",
        )
    return subjects, chosen


def compare(models: tuple[str, ...], reference: str | None, options: Options) -> Comparison:
    """Measure everything that was asked for, with a progress bar."""
    import torch

    from edgeawq.cli.console import get_error_console
    from edgeawq.cli.progress import make_token_bar
    from edgeawq.quantize.comparison import Comparison
    from edgeawq.quantize.parallel import start_workers

    if options.tasks:
        from edgeawq.quantize.harness import check_harness

        check_harness()
    subjects, chosen = open_subjects(models, reference, options.setting.chunk)
    with make_token_bar(get_error_console()) as bar, start_workers(options.threads) as workers, torch.no_grad():
        session = Evaluator(options, bar, workers)
        with session.use_reference(chosen):
            results = [session.measure(subject) for subject in subjects]
        if options.by_layer and chosen is not None:
            results = session.add_layers(results, subjects, chosen)
        histograms = session.measure_histograms(chosen) if options.by_layer and chosen is not None else None
        if options.tasks:
            results = [session.add_tasks(result, subject) for result, subject in zip(results, subjects, strict=True)]
    first = session.windows_of[subjects[0].name]
    return Comparison(
        text=options.text.name,
        setting=options.setting,
        n_windows=len(first.token_ids),
        n_scored=first.n_scored,
        results=tuple(results),
        histograms=histograms,
    )


@dataclass
class Evaluator:
    """One comparison in progress."""

    options: Options
    bar: Progress
    workers: Workers
    chosen: Subject | None = None
    states: ReferenceStates | None = None
    base: TokenScores | None = None
    windows_of: dict[str, Windows] = field(default_factory=dict)

    @contextmanager
    def use_reference(self, chosen: Subject | None) -> Iterator[None]:
        """Score the reference first and keep its states for the others."""
        from edgeawq.quantize.evaluate import keep_reference, score_model
        from edgeawq.quantize.perplexity import stream_model

        with ExitStack() as stack:
            if chosen is not None and chosen.checkpoint is not None:
                self.chosen = chosen
                model = stream_model(chosen.checkpoint)
                windows = self.cut(chosen, self.read_tokens(chosen))
                self.states = stack.enter_context(keep_reference(model, windows))
                self.base = score_model(
                    model, windows, self.workers, fill=self.states, on_progress=self.follow(chosen.name, windows)
                )
            yield
            self.states = None

    def follow(self, name: str, windows: Windows) -> Any:
        """A row of the progress bar."""
        from edgeawq.cli.progress import follow

        return follow(self.bar, name, windows.token_ids.numel())

    def read_tokens(self, subject: Subject) -> torch.Tensor:
        """The text by a checkpoint's tokenizer."""
        from edgeawq.quantize.perplexity import read_tokens

        assert subject.checkpoint is not None
        return read_tokens(self.options.text, subject.checkpoint, self.options.setting.n_tokens)

    def cut(self, subject: Subject, tokens: torch.Tensor) -> Windows:
        """A model's windows, remembered."""
        from edgeawq.quantize.scores import make_windows

        self.windows_of[subject.name] = make_windows(tokens, self.options.setting)
        return self.windows_of[subject.name]

    def measure(self, subject: Subject) -> ModelResult:
        """Score one model; without a divergence where its tokens are not the reference's."""
        from edgeawq.quantize.comparison import ModelResult
        from edgeawq.quantize.evaluate import score_model
        from edgeawq.quantize.perplexity import stream_model
        from edgeawq.quantize.scores import summarize_scores
        from edgeawq.quantize.storage import measure_storage

        if subject is self.chosen and self.base is not None:
            assert subject.checkpoint is not None
            storage = measure_storage(subject.checkpoint)
            return ModelResult(subject.name, subject.kind, True, summarize_scores(self.base), storage)
        if subject.checkpoint is None:
            with open_bundle_engine(subject.name, self.options.setting.chunk, self.options.threads) as engine:
                tokens = read_bundle_tokens(engine, self.options.text, self.options.setting.n_tokens)
                windows = self.cut(subject, tokens)
                states, remark = self.pick_states(subject, windows, engine.decoder.config.vocab_size)  # type: ignore[attr-defined]
                scores = score_bundle(engine, windows, states, self.follow(subject.name, windows))
            storage = measure_bundle_storage(subject.name)
        else:
            model = stream_model(subject.checkpoint)
            windows = self.cut(subject, self.read_tokens(subject))
            states, remark = self.pick_states(subject, windows, len(model.head))
            scores = score_model(
                model, windows, self.workers, reference=states, on_progress=self.follow(subject.name, windows)
            )
            storage = measure_storage(subject.checkpoint)
        score = summarize_scores(scores, self.base if states is not None else None)
        return ModelResult(subject.name, subject.kind, False, score, storage, remark=remark)

    def pick_states(self, subject: Subject, windows: Windows, vocab_size: int) -> tuple[ReferenceStates | None, str]:
        """The reference's states where they can be compared with a model's, and otherwise why not."""
        import torch

        if self.states is None or self.chosen is None:
            return None, ""
        wanted = self.windows_of[self.chosen.name].token_ids
        if torch.equal(wanted, windows.token_ids) and vocab_size == len(self.states.head):
            return self.states, ""
        return None, (
            f"{subject.name} splits the text into other tokens than {self.chosen.name}: "
            "no divergence, and the perplexities per token do not compare"
        )

    def layer_chunks(self, subject: Subject) -> torch.Tensor:
        """Pieces of the text for what is measured by layer, [chunks, positions]."""
        tokens = self.windows_of[subject.name].token_ids.flatten()[:LAYER_TOKENS]
        length = min(LAYER_CHUNK, len(tokens))
        return tokens[: len(tokens) // length * length].view(-1, length)

    def add_layers(self, results: list[ModelResult], subjects: list[Subject], chosen: Subject) -> list[ModelResult]:
        """Results with the errors of every block, for checkpoints of the reference's shape."""
        from edgeawq.cli.progress import follow
        from edgeawq.quantize.layer_errors import compare_blocks
        from edgeawq.quantize.perplexity import stream_model

        assert chosen.checkpoint is not None
        chunks = self.layer_chunks(chosen)
        found = []
        for result, subject in zip(results, subjects, strict=True):
            if subject.checkpoint is None or result.score.divergence is None or subject is chosen:
                found.append(result)
                continue
            blocks = compare_blocks(
                stream_model(chosen.checkpoint),
                stream_model(subject.checkpoint),
                chunks,
                self.workers,
                follow(self.bar, f"layers of {subject.name}", chunks.numel()),
            )
            found.append(replace(result, blocks=tuple(blocks)))
        return found

    def measure_histograms(self, chosen: Subject) -> Any:
        """Histograms of the reference."""
        from edgeawq.cli.progress import follow
        from edgeawq.quantize.histograms import measure_histograms
        from edgeawq.quantize.perplexity import stream_model

        assert chosen.checkpoint is not None
        chunks = self.layer_chunks(chosen)
        return measure_histograms(
            stream_model(chosen.checkpoint), chunks, self.workers, follow(self.bar, "histograms", chunks.numel())
        )

    def add_tasks(self, result: ModelResult, subject: Subject) -> ModelResult:
        """A result with the accuracies of the tasks; bundles are not asked."""
        from edgeawq.cli.progress import follow
        from edgeawq.quantize.harness import run_tasks
        from edgeawq.quantize.perplexity import stream_model

        if subject.checkpoint is None:
            return replace(
                result, remark=result.remark or f"{subject.name} is a bundle: tasks are asked of checkpoints"
            )
        scores: dict[str, TaskScore] = run_tasks(
            stream_model(subject.checkpoint),
            subject.checkpoint,
            self.options.tasks,
            self.workers,
            task_folder=self.options.task_folder,
            limit=self.options.task_limit,
            make_progress=lambda n_tokens: follow(self.bar, f"tasks of {subject.name}", n_tokens),
        )
        return replace(result, tasks=scores)
