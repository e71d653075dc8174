"""`python -m tests.devices up pi4`: an emulated Raspberry Pi to play with. `make device-up pi4` runs this."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeawq.errors import EdgeawqError
from tests.devices.boards import BOARDS, find_board
from tests.devices.cache import cache_folder
from tests.devices.device import EmulatedDevice
from tests.devices.requirements import check_requirements
from tests.devices.root_tree import build_root_tree

MODEL = "embedded:smollm2-135m-instruct"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parse(arguments)
    try:
        if options.command == "up":
            _bring_up(options.name, options.port, options.fresh)
        elif options.command == "down":
            _bring_down(options.names)
        elif options.command == "list":
            _list_devices()
        else:
            print(build_root_tree(_say))
    except EdgeawqError as error:
        print(f"{error.what}\n{error.remedy}".strip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.devices", description="Emulated Raspberry Pis.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a device; it goes on until `down`")
    up.add_argument("name", help=f"{' or '.join(BOARDS)}; pi4-NAME is a second one of that kind")
    up.add_argument("--port", type=int, default=0, help="the TCP port on 127.0.0.1 [the one before, or a free one]")
    up.add_argument("--fresh", action="store_true", help="with an empty disk, as with a newly written SD card")
    down = commands.add_parser("down", help="stop devices; their disks stay")
    down.add_argument("names", nargs="*", help="all that run, when none is named")
    commands.add_parser("list", help="the devices that were ever started here")
    commands.add_parser("build", help="build the tree that all devices share, and show where it is")
    return parser.parse_args(arguments)


def _bring_up(name: str, port: int, fresh: bool) -> None:
    device = _find(name, port)
    check_requirements()
    build_root_tree(_say)
    if fresh:
        device.wipe()
    if device.running is None:
        device.start(detached=True)
        _say(f"{name} is up: {device.board.model}, emulated; it goes on until `make device-down {name}`")
    else:
        _say(f"{name} is up already")
    edgeawq = _find_program()
    address = f"pi@127.0.0.1:{device.port}"
    _say(f"Its host key: {device.host_key.split()[0]} {device.fingerprint}")
    _say("Next, as with a real board:")
    print(f"  {edgeawq} device add {name} {address} --identity {_shorten(device.identity)} \\")
    print(f"      --yes-host-key {device.fingerprint} --model {MODEL}")
    print(f"  {edgeawq} push {name}")
    print(f'  {edgeawq} chat {name} --prompt "What is the capital of France?"')
    _say("To look around on it:")
    print(f"  ssh -i {_shorten(device.identity)} -p {device.port} pi@127.0.0.1")


def _bring_down(names: Sequence[str]) -> None:
    check_requirements()
    devices = [_find(name) for name in names] or [device for device in _find_all() if device.running]
    for device in devices:
        stopped = device.stop()
        _say(f"{device.name} is down" if stopped else f"{device.name} was not running")
    if not devices:
        _say("no emulated device is running")


def _list_devices() -> None:
    for device in _find_all():
        running = device.running
        state = f"up    pi@127.0.0.1:{running.port}" if running else "down"
        print(f"{device.name:<12} {device.board.model:<32} {state}")


def _find(name: str, port: int = 0) -> EmulatedDevice:
    board = find_board(name)
    return EmulatedDevice(board, cache_folder() / name, name=name, port=port)


def _find_all() -> list[EmulatedDevice]:
    return [_find(folder.name) for folder in sorted(cache_folder().glob("pi*")) if folder.is_dir()]


def _find_program() -> str:
    """How to call edgeawq from here: by its name, or by the path of the one that belongs to this Python."""
    beside = Path(sys.executable).with_name("edgeawq")
    if not beside.exists():
        return "edgeawq"
    relative = os.path.relpath(beside)
    return relative if not relative.startswith("..") else str(beside)


def _shorten(path: Path) -> str:
    """The path as a person would type it."""
    home = Path.home()
    if path.is_relative_to(home):
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(str(path))


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
