"""`edgeawq eval`: perplexity of models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgeawq.errors import UsageError


@click.command(name="eval")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Plain text, or JSON Lines with `text` or `messages`.",
)
@click.option("--tokens", type=int, default=12288, show_default=True, help="Tokens of it, in chunks of 1024.")
@click.option("--threads", type=int, default=0, help="Threads; 0 takes every CPU.")
@click.option("--json", "as_json", is_flag=True, help="Write the figures as JSON.")
def command(models: tuple[str, ...], text: Path, tokens: int, threads: int, as_json: bool) -> None:
    """Measure the perplexity of models side by side.

    MODELS are float models or AWQ checkpoints. Perplexity is plain: every chunk of 1024 tokens on its own, each token
    but the first predicted from those before it, in float32.

    \b
    Example:
      edgeawq eval embedded:smollm2-135m-instruct ./smollm2-awq --text test.txt
    """
    import torch
    from rich.table import Table

    from edgeawq.checkpoints.open_model import open_model
    from edgeawq.cli.console import get_console, get_error_console
    from edgeawq.cli.quantize import make_bar
    from edgeawq.quantize.parallel import start_workers
    from edgeawq.quantize.perplexity import measure_perplexity, read_evaluation_tokens, stream_model

    if threads < 0:
        raise UsageError(f"{threads} threads make no sense", remedy="0 takes every CPU")
    checkpoints = [open_model(model) for model in models]
    results = []
    with make_bar(get_error_console()) as bar, start_workers(threads) as workers, torch.no_grad():
        for reference, checkpoint in zip(models, checkpoints, strict=True):
            chunks = read_evaluation_tokens(text, checkpoint, tokens)
            row = bar.add_task(checkpoint.name[:26], detail="")

            def show(done: int, total: int, row: int = int(row)) -> None:
                bar.update(row, completed=done, total=total)  # type: ignore[arg-type]

            found = measure_perplexity(stream_model(checkpoint), chunks, workers, show)
            results.append(
                {
                    "model": reference,
                    "bits": 16 if checkpoint.quantization is None else checkpoint.quantization.bits,
                    "perplexity": found.perplexity,
                    "tokens": found.n_tokens,
                    "chunk": found.chunk,
                }
            )
    if as_json:
        click.echo(json.dumps(results))
        return
    table = Table(title=f"{text.name}: {results[0]['tokens']} predicted tokens, chunks of {results[0]['chunk']}")
    table.add_column("model")
    table.add_column("bits", justify="right")
    table.add_column("perplexity", justify="right")
    table.add_column("against the first", justify="right")
    first = float(str(results[0]["perplexity"]))
    for result in results:
        value = float(str(result["perplexity"]))
        table.add_row(str(result["model"]), str(result["bits"]), f"{value:.3f}", f"{100 * (value / first - 1):+.2f} %")
    get_console().print(table)
