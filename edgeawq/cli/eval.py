"""`edgeawq eval`: models side by side: perplexity, divergence from the float model, size, errors by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeawq.errors import UsageError


@click.command(name="eval")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Plain text, or JSON Lines with `text` or `messages`, or a folder of these.",
)
@click.option(
    "--reference",
    metavar="MODEL",
    help="Float model that the others are compared with; the first float model among MODELS without it.",
)
@click.option("--tokens", type=int, default=12288, show_default=True, help="Tokens of the text to use.")
@click.option("--chunk", type=int, default=1024, show_default=True, help="Tokens that a model reads at a time.")
@click.option(
    "--stride",
    type=int,
    default=None,
    help="Tokens from one window to the next, for windows that overlap (strided); without it they do not (plain).",
)
@click.option("--layers", is_flag=True, help="Compare layer by layer too, and show the errors.")
@click.option("--tasks", metavar="NAME,…", help="Multiple-choice tasks of lm-evaluation-harness, such as arc_easy.")
@click.option(
    "--task-folder", type=click.Path(path_type=Path), metavar="DIR", help="Folder with task files of your own."
)
@click.option("--task-limit", type=int, default=None, help="Questions of each task to ask; all without it.")
@click.option("--threads", type=int, default=0, help="Threads; 0 takes every CPU.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with plots.")
@click.option("--json", "as_json", is_flag=True, help="Write the figures as JSON.")
def command(models: tuple[str, ...], text: Path, html: Path | None, as_json: bool, **given: Any) -> None:
    """Compare models on a text: perplexity, KL divergence from the float model, bits per weight, size.

    MODELS are float models, quantized checkpoints, or bundles; bundles run in their own runtime. Perplexity is plain
    unless --stride is given: every chunk on its own, each token but the first predicted from those before it.

    \b
    Example:
      edgeawq eval embedded:smollm2-135m-instruct ./smollm2-awq --text test.txt
      edgeawq eval a b c --reference ./float --text test.txt --stride 512 --html report.html
    """
    from edgeawq.cli.console import get_console
    from edgeawq.cli.eval_run import Options, compare
    from edgeawq.cli.eval_table import describe_setting, make_error_table, make_score_table, make_task_table
    from edgeawq.quantize.scores import EvaluationSetting

    setting = EvaluationSetting(given["tokens"], given["chunk"], given["stride"] or given["chunk"])
    if given["stride"] is not None and given["stride"] < 1:
        raise UsageError(f"a stride of {given['stride']} tokens makes no sense")
    if given["threads"] < 0:
        raise UsageError(f"{given['threads']} threads make no sense", remedy="0 takes every CPU")
    if html is not None:
        from edgeawq.reports.page import check_page

        check_page(html)
    options = Options(
        text=text,
        setting=setting,
        threads=given["threads"],
        by_layer=given["layers"] or html is not None,
        tasks=tuple(filter(None, (name.strip() for name in (given["tasks"] or "").split(",")))),
        task_folder=given["task_folder"],
        task_limit=given["task_limit"],
    )
    comparison = compare(models, given["reference"], options)
    if html is not None:
        from edgeawq.reports.evaluation_page import make_evaluation_page
        from edgeawq.reports.page import write_page

        write_page(html, make_evaluation_page(comparison))
    if as_json:
        click.echo(json.dumps(comparison.describe(), allow_nan=False))
        return
    console = get_console()
    console.print(describe_setting(comparison), highlight=False)
    console.print(make_score_table(comparison))
    for remark in dict.fromkeys(result.remark for result in comparison.results if result.remark):
        console.print(f"[yellow]note:[/] {remark}", highlight=False)
    if any(result.tasks for result in comparison.results):
        console.print("Multiple-choice accuracy in %", highlight=False)
        console.print(make_task_table(comparison))
    if given["layers"]:
        for result in comparison.results:
            if result.blocks:
                console.print(make_error_table(result))
    if html is not None:
        console.print(f"page: {html}", highlight=False)
