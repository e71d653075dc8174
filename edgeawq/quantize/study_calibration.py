"""How much calibration text a method needs, and what happens when it is of another kind than what the model reads.

Both are figure 8 of the AWQ paper. Every cell is a whole run of the quantizer, into a temporary folder.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import UsageError
from edgeawq.quantize.calibration import make_encoder, read_documents
from edgeawq.quantize.chat_text import make_chat_renderer
from edgeawq.quantize.parallel import start_workers
from edgeawq.quantize.perplexity import measure_perplexity, stream_model
from edgeawq.quantize.pipeline import Progress, quantize_model
from edgeawq.quantize.scores import EvaluationSetting, make_windows
from edgeawq.quantize.settings import QuantizeSettings
from edgeawq.quantize.study import OnStep, Value

MIN_REST = 512  # tokens of a domain that must be left to calibrate on


@dataclass(frozen=True)
class Domain:
    """A kind of text: tokens to evaluate on, and the rest of it, in a file, to calibrate on."""

    name: str
    chunks: torch.Tensor  # [chunks, positions]
    calibration: Path
    n_rest: int  # tokens in that file


def split_domain(name: str, text: Path, checkpoint: Checkpoint, setting: EvaluationSetting, folder: Path) -> Domain:
    """Evaluate on a text's first tokens, calibrate on what follows; nothing is in both."""
    encode = make_encoder(checkpoint.tokenizer, checkpoint.config)
    backend = Tokenizer.from_str(checkpoint.tokenizer.tokenizer_json)
    tokens: list[int] = []
    rest: list[str] = []
    for document in read_documents(text, make_chat_renderer(checkpoint.tokenizer)):
        ids = encode(document)
        missing = setting.n_tokens - len(tokens)
        tokens += ids[: max(missing, 0)]
        if missing <= 0:
            rest.append(document)
        elif missing < len(ids):
            encoding = backend.encode(document, add_special_tokens=False)
            added = len(ids) - len(encoding.ids)  # a token that begins every text
            rest.append(document[encoding.offsets[missing - added][0] :])
    n_rest = sum(len(encode(document)) for document in rest)
    if n_rest < MIN_REST:
        raise UsageError(
            f"{text} holds {len(tokens) + n_rest:,} tokens: {setting.n_tokens:,} to evaluate on and at least "
            f"{MIN_REST} to calibrate on are needed",
            remedy="give a longer text, or fewer --tokens",
        )
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for document in rest), encoding="utf-8")
    return Domain(name, make_windows(torch.tensor(tokens), setting).token_ids, path, n_rest)


@dataclass(frozen=True)
class Trials:
    """What the runs of a study share."""

    checkpoint: Checkpoint
    settings: QuantizeSettings
    folder: Path
    n_threads: int = 0

    def measure_float(self, domain: Domain) -> float:
        """The float model's perplexity."""
        with start_workers(self.n_threads) as workers, torch.no_grad():
            return measure_perplexity(stream_model(self.checkpoint), domain.chunks, workers).perplexity

    def run(
        self,
        calibration: Path | None,
        domains: Sequence[Domain],
        on_progress: Callable[[float], None],
        **changes: object,
    ) -> list[float]:
        """Quantize once and measure perplexity on every domain; on_progress gets the share done."""
        settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            output = Path(folder) / "model"
            quantize_model(
                self.checkpoint,
                output,
                settings,
                calibration=calibration,
                on_progress=lambda progress: on_progress(measure_share(progress)),
                n_threads=self.n_threads,
            )
            quantized = open_model(str(output))
            with start_workers(self.n_threads) as workers, torch.no_grad():
                model = stream_model(quantized)
                return [measure_perplexity(model, domain.chunks, workers).perplexity for domain in domains]


def measure_share(progress: Progress) -> float:
    """How much of a run is done: the blocks are what takes the time."""
    if progress.stage == "quantize":
        return progress.done / max(progress.total, 1)
    return 0.0 if progress.stage == "calibrate" else 1.0


def study_size(
    trials: Trials, domain: Domain, methods: Sequence[str], sizes: Sequence[int], n_seeds: int, on_step: OnStep
) -> list[dict[str, Value]]:
    """Rows of perplexity by method and number of calibration tokens, mean and spread over draws of the text."""
    rows: list[dict[str, Value]] = []
    steps = [(method, size) for method in methods for size in sizes]
    total = len(steps) * n_seeds
    for number, (method, size) in enumerate(steps):
        found = []
        for seed in range(n_seeds):
            done = number * n_seeds + seed

            def show(share: float, done: int = done, label: str = f"{method}, {size:,} tokens") -> None:
                on_step(label, int(100 * (done + share)), 100 * total)

            found += trials.run(
                domain.calibration,
                [domain],
                show,
                method=method,
                calibration_tokens=size,
                seed=trials.settings.seed + seed,
            )
        rows.append(
            {
                "method": method,
                "tokens": size,
                "perplexity": statistics.fmean(found),
                "spread": max(found) - min(found) if n_seeds > 1 else None,
            }
        )
    on_step("done", total, total)
    return rows


def study_shift(
    trials: Trials, domains: Sequence[Domain], methods: Sequence[str], on_step: OnStep
) -> list[dict[str, Value]]:
    """Rows of perplexity by method, domain calibrated on and domain evaluated on; penalty of the wrong one."""
    rows: list[dict[str, Value]] = []
    floats = {domain.name: trials.measure_float(domain) for domain in domains}
    steps = [(method, domain) for method in methods for domain in domains]
    # The same number of tokens everywhere, so that only their kind differs.
    size = min(trials.settings.calibration_tokens, *(domain.n_rest for domain in domains))
    for number, (method, source) in enumerate(steps):

        def show(share: float, number: int = number, label: str = f"{method} on {source.name}") -> None:
            on_step(label, int(100 * (number + share)), 100 * len(steps))

        found = trials.run(source.calibration, domains, show, method=method, calibration_tokens=size)
        for target, perplexity in zip(domains, found, strict=True):
            rows.append(
                {
                    "method": method,
                    "calibrated": source.name,
                    "evaluated": target.name,
                    "perplexity": perplexity,
                    "float": floats[target.name],
                    "penalty": None,
                }
            )
    on_step("done", len(steps), len(steps))
    own = {(row["method"], row["evaluated"]): row for row in rows if row["calibrated"] == row["evaluated"]}
    for row in rows:
        if row["calibrated"] != row["evaluated"]:
            base = own[row["method"], row["evaluated"]]["perplexity"]
            assert isinstance(base, float) and isinstance(row["perplexity"], float)
            row["penalty"] = row["perplexity"] - base
    return rows
