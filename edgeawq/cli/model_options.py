"""Options that every command with a model takes, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeawq.errors import UsageError

if TYPE_CHECKING:
    from edgeawq.runtime.engine import Activations, Engine
    from edgeawq.runtime.native import NativeKernel
    from edgeawq.runtime.sampler import SamplerSettings
    from edgeawq.runtime.session import ChatSession

Function = TypeVar("Function", bound=Callable[..., Any])

SAMPLING_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
ENGINE_NAMES = ("threads", "cpu_affinity", "context_length", "activations", "kv_bits")
SESSION_NAMES = ("session", "speculate", "on_full")

_SAMPLING_OPTIONS = (
    click.option("--temperature", type=float, help="Randomness; 0 always takes the likeliest token."),
    click.option("--top-k", type=int, help="Choose among the K likeliest tokens only; 0 is off."),
    click.option(
        "--top-p", type=float, help="Choose among the likeliest tokens that reach this probability; 1 is off."
    ),
    click.option(
        "--min-p", type=float, help="Leave out tokens below this share of the best one's probability; 0 is off."
    ),
    click.option("--repetition-penalty", type=float, help="Above 1 makes repeated tokens less likely."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
)
_ENGINE_OPTIONS = (
    click.option(
        "--threads",
        metavar="N|auto",
        help="Number of threads. auto measures which number is fastest (2 seconds) and remembers it. "
        "By default what was remembered, otherwise one for each CPU.",
    ),
    click.option("--cpu-affinity", metavar="LIST", help="CPUs to run on, such as 0,1 or 0-3."),
    click.option("--context-length", type=int, help="Tokens of context to make room for."),
    click.option(
        "--activations",
        type=click.Choice(["int8", "float"]),
        help="int8 is fast (default); float is exact, to compare with.",
    ),
    click.option(
        "--kv-bits",
        type=click.Choice(["8", "16"]),
        help="Elements of the KV cache: 16 bits (default), or 8 for half the memory.",
    ),
    click.option("--jit", is_flag=True, help="Build kernels for a CPU that the bundle has none for; needs numba."),
    click.option(
        "--verify", is_flag=True, help="Compare the bundle's hashes first; otherwise only sizes and places are checked."
    ),
)
_SESSION_OPTIONS = (
    click.option(
        "--session",
        metavar="FILE",
        help="Go on with the conversation in FILE if it is there, and save it at the end; FILE.json has no KV cache.",
    ),
    click.option(
        "--cache-prompt", is_flag=True, help="Keep the system prompt's KV cache on disk: the next start skips it."
    ),
    click.option(
        "--speculate",
        type=click.Choice(["off", "ngram"]),
        help="ngram drafts tokens from repeated text and checks several at once: faster where an answer repeats.",
    ),
    click.option(
        "--on-full",
        type=click.Choice(["stop", "shift"]),
        help="A full context ends the answer (stop, default), or drops the oldest half of the conversation (shift).",
    ),
)


def sampling_options(function: Function) -> Function:
    """Add --temperature, --top-k, --top-p, --min-p, --repetition-penalty and --seed."""
    for option in reversed(_SAMPLING_OPTIONS):
        function = option(function)
    return function


def engine_options(function: Function) -> Function:
    """Add --threads, --cpu-affinity, --context-length, --activations, --kv-bits, --jit and --verify."""
    for option in reversed(_ENGINE_OPTIONS):
        function = option(function)
    return function


def session_options(function: Function) -> Function:
    """Add --session, --cache-prompt, --speculate and --on-full."""
    for option in reversed(_SESSION_OPTIONS):
        function = option(function)
    return function


def open_session(engine: Engine, options: Mapping[str, Any], *, stop_strings: Sequence[str] = ()) -> ChatSession:
    """A conversation with the values of `session_options`; what --session names is loaded if it is there."""
    from edgeawq.runtime.cache_folder import find_cache_folder
    from edgeawq.runtime.prompt_cache import PromptCache
    from edgeawq.runtime.session import ChatSession

    session = ChatSession(
        engine,
        stop_strings=stop_strings,
        speculates=options["speculate"] == "ngram",
        on_full=options["on_full"] or "stop",
        prompt_cache=PromptCache(find_cache_folder() / "prompts") if options["cache_prompt"] else None,
    )
    path = find_session_file(options)
    if path is not None and path.exists():
        from edgeawq.tui.commands import describe_loaded

        loaded = session.load(path)
        click.echo(describe_loaded(session, loaded, str(path)), err=True)
    if options["system"] is not None:
        session.set_system(options["system"])
    return session


def save_session(session: ChatSession, options: Mapping[str, Any]) -> None:
    """Write what --session names; a conversation without a message leaves no file."""
    path = find_session_file(options)
    if path is not None and session.messages:
        session.save(path)


def find_session_file(options: Mapping[str, Any]) -> Path | None:
    """The file that --session names."""
    return Path(options["session"]).expanduser() if options["session"] else None


def open_model_engine(bundle: Path, options: Mapping[str, Any]) -> Engine:
    """Open the bundle with the values of `engine_options`."""
    from edgeawq.runtime.engine import open_engine

    if options["verify"]:
        from packager.bundle_files import verify_files
        from packager.manifest_reader import read_manifest

        verify_files(check_bundle_folder(bundle), read_manifest(bundle))
    built = build_kernel(bundle, options)
    return open_engine(
        bundle,
        n_threads=choose_threads(bundle, options, **built),
        context_length=options["context_length"],
        activations=options["activations"] or "int8",
        kv_bits=int(options["kv_bits"] or 0),
        give_way=True,
        **built,
    )


def build_kernel(bundle: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The argument `kernel` that --jit asks for; none without it."""
    if not options["jit"]:
        return {}
    from edgeawq.cli.jit import build_missing_kernel

    return {"kernel": build_missing_kernel(check_bundle_folder(bundle))}


def choose_threads(bundle: Path, options: Mapping[str, Any], kernel: NativeKernel | None = None) -> int:
    """The value of --threads, 0 for one for each CPU; goes to the CPUs that the threads should run on.

    Called before the threads start, which stay on the CPUs of the one that starts them.
    """
    import os

    from edgeawq.runtime.placement import choose_cpus, parse_cpu_list, use_cpus

    if options["cpu_affinity"]:
        use_cpus(parse_cpu_list(options["cpu_affinity"]))
    activations: Activations = options["activations"] or "int8"
    n_threads = _read_threads(options["threads"])
    if options["threads"] == "auto":
        n_threads = _measure_threads(bundle, activations, kernel)
    elif n_threads == 0:
        from edgeawq.runtime.thread_choice import recall_threads

        n_threads = recall_threads(bundle, activations)
    if n_threads:
        use_cpus(choose_cpus(n_threads, frozenset(os.sched_getaffinity(0))))
    return n_threads


def _read_threads(text: str | None) -> int:
    if text is None or text == "auto":
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise UsageError(f"--threads is {text!r}, neither a number nor auto", remedy="0 takes every CPU")
    return int(text)


def _measure_threads(bundle: Path, activations: Activations, kernel: NativeKernel | None) -> int:
    from edgeawq.runtime.thread_choice import measure_threads, remember_threads

    choice = measure_threads(check_bundle_folder(bundle), activations=activations, kernel=kernel)
    speeds = ", ".join(f"{n}: {speed:.1f}" for n, speed in sorted(choice.decode_tokens_per_s.items()))
    click.echo(f"edgeawq: {choice.n_threads} threads are fastest (tokens/s by threads: {speeds})", err=True)
    remember_threads(bundle, choice, activations)
    return choice.n_threads


def choose_sampling(defaults: SamplerSettings, options: Mapping[str, Any]) -> SamplerSettings:
    """The bundle's defaults, with what was given on the command line instead."""
    from dataclasses import replace

    return replace(defaults, **{name: options[name] for name in SAMPLING_NAMES if options[name] is not None})


def check_bundle_folder(path: Path) -> Path:
    """The path itself if a bundle lies there; UsageError otherwise."""
    if not path.is_dir():
        raise UsageError(
            f"there is no bundle {path}", remedy="give a folder that `edgeawq pack` has written, NAME.edgeawq"
        )
    return path


def prepare_output() -> None:
    """Let standard output replace what its encoding lacks: an answer may hold any character."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
