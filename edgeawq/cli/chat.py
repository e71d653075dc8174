"""`edgeawq chat`: a conversation with a bundle here, or with a device."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeawq.cli.device_options import inventory_option
from edgeawq.cli.model_options import (
    ENGINE_NAMES,
    SAMPLING_NAMES,
    SESSION_NAMES,
    choose_sampling,
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
    from edgeawq.runtime.sampler import Sampler
    from edgeawq.runtime.session import ChatSession

EXIT_INTERRUPTED = 130


@click.command("chat")
@click.argument("target")
@click.option("--prompt", "-p", help="Ask this one question and end.")
@click.option("--system", help="A system prompt.")
@click.option("--max-tokens", type=int, help="Longest answer; by default as much as the context holds.")
@sampling_options
@engine_options
@session_options
@inventory_option
def command(target: str, **options: Any) -> int:
    """Chat with a bundle here, or with a device.

    TARGET is a bundle's folder or the name of a device. A folder that holds a bundle wins over a device of the same
    name. With a pipe, what comes in is one question.

    \b
    Example:
      edgeawq chat pi4
      edgeawq chat smollm2.edgeawq --temperature 0.7
      echo "What is the capital of France?" | edgeawq chat pi4
    """
    prepare_output()
    bundle = find_bundle(target, options["inventory"])
    if bundle is None:
        from edgeawq.deploy.remote_chat import run_remote_chat

        return run_remote_chat(target, build_remote_arguments(options), inventory=options["inventory"])
    return _chat_here(bundle, options)


def find_bundle(target: str, inventory: str | None = None) -> Path | None:
    """The bundle's folder that `target` names; None when it names a device; UsageError when it names neither."""
    path = Path(target).expanduser()
    if (path / "manifest.json").is_file():
        return path
    devices = _list_devices(inventory)
    if target in devices and not path.is_absolute():
        return None
    what = f"there is no bundle and no device {target!r}"
    if path.is_dir():
        what = f"{target} is a folder, but no bundle (it has no manifest.json), and no device has this name"
    bundles = sorted(str(found.parent) for found in Path().glob("*.edgeawq/manifest.json"))
    hints = [f"devices: {', '.join(devices)}"] if devices else []
    hints += [f"bundles here: {', '.join(bundles)}"] if bundles else []
    hints += ["`edgeawq device add` adds a device, `edgeawq pack` makes a bundle of a checkpoint"]
    raise UsageError(what, remedy="; ".join(hints))


def build_remote_arguments(options: dict[str, Any]) -> list[str]:
    """The same options for the `edgeawq chat` that runs on the device."""
    names = ("prompt", "system", "max_tokens", *SAMPLING_NAMES, *ENGINE_NAMES, *SESSION_NAMES)
    flags = [f"--{name.replace('_', '-')}" for name in ("cache_prompt", "jit", "verify") if options[name]]
    return flags + [f"--{name.replace('_', '-')}={options[name]}" for name in names if options[name] is not None]


def _chat_here(bundle: Path, options: dict[str, Any]) -> int:
    is_pipe = not sys.stdin.isatty()
    question = options["prompt"]
    if question is not None and not question.strip():
        raise UsageError("the prompt is empty", remedy="write a question, or leave --prompt out to chat")
    if question is None and is_pipe:
        from edgeawq.tui.plain import read_piped_question

        question = read_piped_question(sys.stdin)

    from edgeawq.runtime.sampler import make_sampler

    with open_model_engine(bundle, options) as engine:
        session = open_session(engine, options)
        sampler = make_sampler(choose_sampling(engine.sampling, options))
        code = _talk(session, sampler, question, options["max_tokens"])
        save_session(session, options)
        return code


def _talk(session: ChatSession, sampler: Sampler, question: str | None, max_new_tokens: int | None) -> int:
    if question is not None:
        return _answer_one(session, question, sampler, max_new_tokens)
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        from edgeawq.tui.plain import run_plain_chat

        return run_plain_chat(session, sampler, max_new_tokens=max_new_tokens)
    from edgeawq.tui.app import ChatApp

    return ChatApp(session, sampler, max_new_tokens=max_new_tokens).run()


def _answer_one(session: ChatSession, question: str, sampler: Sampler, max_new_tokens: int | None) -> int:
    from edgeawq.tui.answer import describe_last
    from edgeawq.tui.plain import answer_once

    reason = answer_once(session, question, sampler, max_new_tokens=max_new_tokens)
    note = describe_last(session, reason)
    if note:
        click.echo(note, err=True)
    return EXIT_INTERRUPTED if reason == "cancelled" else 0


def _list_devices(inventory: str | None) -> list[str]:
    from edgeawq.deploy.inventory import load_inventory

    return [device.name for device in load_inventory(inventory).all_devices()]
