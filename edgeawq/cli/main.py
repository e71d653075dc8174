"""The `edgeawq` command. Each sub-command is one file that is imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

import click

import edgeawq
from edgeawq.cli.console import print_error
from edgeawq.errors import EdgeawqError, MissingExtraError, UsageError
from edgeawq.runtime.starts import note_answer

# name → one line of help. Kept here so that `edgeawq --help` imports nothing but click.
COMMANDS = {
    "quantize": "Turn a float model into a quantized checkpoint.",
    "eval": "Compare models on a text: perplexity, divergence, size.",
    "study": "Repeat the AWQ paper's experiments on a model.",
    "plan": "Say what a model would take and give on a device.",
    "profile": "Measure a device and the model on it; show, compare.",
    "bench": "Measure tokens per second at several sizes and threads.",
    "pack": "Lay a checkpoint out for one device: a bundle.",
    "device": "Add, list and inspect the devices you push to.",
    "push": "Bring a model to a device; do whatever is missing.",
    "status": "Show what runs on the devices.",
    "rollback": "Go back to an earlier release on a device.",
    "history": "List the releases a device has had.",
    "gc": "Remove old releases from a device; --cache: clean up here.",
    "key": "Make keys that sign releases; choose which ones a device trusts.",
    "log": "Show what was done to the devices, or by one device.",
    "chat": "Chat with a bundle here, or with a device.",
    "run": "Answer one prompt with a bundle, as plain text or JSON.",
}

# Python package → the extra that brings it.
HOST_PACKAGES = {
    "torch",
    "transformers",
    "numba",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "paramiko",
    "cryptography",
    "tomlkit",
}


class LazyGroup(click.Group):
    """A click group whose commands are modules of `edgeawq.cli`, imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgeawq.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "See 'edgeawq --help'."
            ctx.fail(f"No such command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgeawq.__version__, prog_name="edgeawq")
def cli() -> None:
    """From a checkpoint to a chat on a small device.

    \b
    Example:
      edgeawq device add pi4 pi@raspberrypi.local
      edgeawq push pi4 embedded:smollm2-135m-instruct
      edgeawq chat pi4
    """


def main() -> None:
    """Run the command line and end the process: 0 done, 1 failed, 2 wrong use, 3–5 device trouble, 130 interrupted."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
        note_answer()
    except click.exceptions.Abort:
        note_answer()  # the user's doing, not the release's
        print("edgeawq: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except click.ClickException as error:
        note_answer()
        error.show()
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        note_answer()
        print("edgeawq: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our pipe has gone (`edgeawq … | head`): nothing more to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except EdgeawqError as error:
        if isinstance(error, UsageError):
            note_answer()
        print_error(error)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in HOST_PACKAGES:
            raise
        missing = MissingExtraError(package, "host")
        print_error(missing)
        raise SystemExit(missing.exit_code) from None
    raise SystemExit(code if isinstance(code, int) else 0)
