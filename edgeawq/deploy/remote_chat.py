"""`edgeawq chat NAME`: the chat runs on the device, this process only lends it its terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from edgeawq.deploy.connect import ask_nobody, connect
from edgeawq.deploy.inventory import Device, load_inventory
from edgeawq.deploy.ssh_prompt import ask_at_terminal
from edgeawq.deploy.transport import quote_words
from edgeawq.errors import DeployError

NOTHING_PUSHED = 96
# What a program in a terminal may want to know of the terminal; TERM and the size travel with the SSH request.
FORWARDED = ("NO_COLOR", "COLORTERM", "TERM_PROGRAM")


def run_remote_chat(name: str, argv: Sequence[str], *, inventory: str | None = None, interactive: bool = True) -> int:
    """Run `edgeawq chat` with the arguments `argv` on the device `name`; return its exit code.

    With a terminal here, a terminal there: raw mode, its size and later changes of it, Ctrl-C. Without one, plain
    pipes. DeployError when nothing has been pushed to the device yet.
    """
    device = load_inventory(inventory).get(name)
    with connect(device, ask=ask_at_terminal if interactive else ask_nobody) as transport:
        code = transport.run_terminal(build_chat_command(device, argv, os.environ))
    if code == NOTHING_PUSHED:
        raise DeployError(f"nothing has been pushed to {name!r} yet", remedy=f"edgeawq push {name} MODEL")
    return code


def build_chat_command(device: Device, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the /bin/sh command that starts the chat in the release that is current at that moment."""
    settings = [f"{key}={shlex.quote(environment[key])}" for key in FORWARDED if environment.get(key)]
    exports = f"export {' '.join(settings)}; " if settings else ""
    # The launcher looks the release up once: a push during the chat must not mix two releases' files.
    return (
        f"root={quote_words([device.root])}; "
        f'[ -x "$root/bin/edgeawq" ] && [ -d "$root/current/" ] || exit {NOTHING_PUSHED}; {exports}'
        f'exec sh "$root/bin/edgeawq" chat @bundle {quote_words(argv)}'
    )
