"""`edgeawq run`: one answer, for people and for scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeawq.cli.model_options import (
    build_kernel,
    check_bundle_folder,
    choose_sampling,
    choose_threads,
    engine_options,
    open_model_engine,
    open_session,
    prepare_output,
    sampling_options,
    save_session,
    session_options,
)
from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeawq.runtime.engine import Engine
    from edgeawq.runtime.generate import Piece
    from edgeawq.runtime.session import ChatSession
    from edgeawq.runtime.stats import GenerationStats
    from edgeawq.tui.answer import StopRequest

EXIT_INTERRUPTED = 130


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", "-p", help="The question; - reads it from standard input.")
@click.option("--system", help="A system prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Longest answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; may be given several times.")
@sampling_options
@engine_options
@session_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of the text.")
@click.option("--stats", is_flag=True, help="Print speeds to standard error.")
@click.option("--golden", is_flag=True, help="Run the bundle's own test; the exit code is 0 when its tokens come out.")
def command(bundle: Path, **options: Any) -> int:
    """Answer one prompt with a bundle, as plain text or JSON.

    \b
    Example:
      edgeawq run smollm2.edgeawq --prompt "What is the capital of France?"
      edgeawq run smollm2.edgeawq --prompt - --json < question.txt
      edgeawq run smollm2.edgeawq --golden --json
    """
    prepare_output()
    check_bundle_folder(bundle)
    if options["golden"]:
        return _run_golden(bundle, options)
    prompt = _read_prompt(options["prompt"])
    from edgeawq.tui.answer import catch_interrupt

    with open_model_engine(bundle, options) as engine, catch_interrupt() as cancelled:
        if options["raw"]:
            return _answer(engine, _continue_text(engine, prompt, options, cancelled), options)
        session = open_session(engine, options, stop_strings=options["stop"])
        code = _answer(engine, _reply(session, prompt, options, cancelled), options)
        save_session(session, options)
        return code


def _answer(engine: Engine, pieces: Iterator[Piece], options: dict[str, Any]) -> int:
    from edgeawq.tui.safe_text import strip_controls

    shows_text = not options["as_json"]
    is_terminal = sys.stdout.isatty()
    texts: list[str] = []
    tokens: list[int] = []
    last: Piece | None = None
    for piece in pieces:
        texts.append(piece.text)
        tokens += piece.token_ids
        last = piece
        if shows_text and piece.text:
            sys.stdout.write(strip_controls(piece.text) if is_terminal else piece.text)
            sys.stdout.flush()
    assert last is not None  # generate() always ends with a piece
    text = "".join(texts)
    if not shows_text:
        import json

        document = {"text": text, "tokens": tokens, "finish_reason": last.finish_reason, **_list_figures(last.stats)}
        click.echo(json.dumps(document, ensure_ascii=False))
    elif not text.endswith("\n"):
        click.echo()
    if options["stats"]:
        click.echo(_describe(last.stats, last.finish_reason), err=True)
    if last.stats.shifts:
        click.echo("edgeawq: the context was full, the oldest part of the text was dropped", err=True)
    if last.finish_reason == "context":
        click.echo(f"edgeawq: the context of {engine.decoder.context_length} tokens is full", err=True)
    return EXIT_INTERRUPTED if last.finish_reason == "cancelled" else 0


def _reply(session: ChatSession, prompt: str, options: dict[str, Any], cancelled: StopRequest) -> Iterator[Piece]:
    from edgeawq.runtime.sampler import make_sampler

    sampler = make_sampler(choose_sampling(session.engine.sampling, options))
    return session.reply(prompt, sampler, max_new_tokens=options["max_tokens"], cancelled=cancelled)


def _continue_text(engine: Engine, prompt: str, options: dict[str, Any], cancelled: StopRequest) -> Iterator[Piece]:
    from edgeawq.runtime.generate import generate
    from edgeawq.runtime.sampler import make_sampler
    from edgeawq.runtime.window import N_SINKS

    for name, remedy in (
        ("system", "write it into the prompt"),
        ("session", "leave --raw out"),
        ("cache_prompt", "leave --raw out"),
    ):
        if options[name]:
            raise UsageError(f"--raw has no place for --{name.replace('_', '-')}", remedy=remedy)
    return generate(
        engine.decoder,
        engine.tokenizer,
        engine.tokenizer.encode_plain(prompt),
        make_sampler(choose_sampling(engine.sampling, options)),
        max_new_tokens=options["max_tokens"],
        stop_token_ids=engine.stop_token_ids,
        stop_strings=options["stop"],
        speculate=options["speculate"] == "ngram",
        on_full=options["on_full"] or "stop",
        n_keep=N_SINKS,
        cancelled=cancelled,
    )


def _run_golden(bundle: Path, options: dict[str, Any]) -> int:
    from edgeawq.runtime.golden import check_golden

    built = build_kernel(bundle, options)
    result = check_golden(bundle, n_threads=choose_threads(bundle, options, **built), **built)
    if options["as_json"]:
        import json

        click.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    elif result.ok:
        click.echo(f"ok: {len(result.tokens)} tokens as expected, {result.decode_tokens_per_s:.1f} tokens/s")
    else:
        click.echo(f"edgeawq: the bundle answers {result.tokens}, expected {result.expected}", err=True)
    return 0 if result.ok else 1


def _read_prompt(prompt: str | None) -> str:
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        from edgeawq.tui.plain import read_piped_question

        return read_piped_question(sys.stdin)
    if not prompt:
        raise UsageError("there is no prompt", remedy='give one: --prompt "What is the capital of France?"')
    return prompt


def _list_figures(stats: GenerationStats) -> dict[str, float | int]:
    return {
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "prefill_tokens_per_s": round(stats.prefill_tokens_per_s, 2),
        "decode_tokens_per_s": round(stats.decode_tokens_per_s, 2),
        "time_to_first_token_s": round(stats.time_to_first_token_s, 4),
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "shifts": stats.shifts,
        "reused_tokens": stats.reused_tokens,
    }


def _describe(stats: GenerationStats, finish_reason: str | None) -> str:
    drafts = (
        f"{stats.accepted_tokens} of {stats.drafted_tokens} drafted tokens accepted; " if stats.drafted_tokens else ""
    )
    return (
        f"{stats.generated_tokens} tokens, {stats.decode_tokens_per_s:.1f} tokens/s; "
        f"prompt {stats.prompt_tokens} tokens, {stats.prefill_tokens_per_s:.1f} tokens/s; "
        f"{drafts}first token after {stats.time_to_first_token_s:.2f} s; ended by {finish_reason}"
    )
