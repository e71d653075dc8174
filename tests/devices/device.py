"""One emulated Raspberry Pi: an arm64 Debian in namespaces of its own, every program run by qemu, sshd on loopback.

Its time says nothing about a board's speed. It proves function: the instruction set, the C library, Python, SSH.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from tests.devices.boards import Board
from tests.devices.cache import locked
from tests.devices.errors import EmulationError
from tests.devices.root_tree import build_root_tree

BOOT_SCRIPT = Path(__file__).with_name("boot.sh")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
PORT_TRIES = 3


@dataclass(frozen=True)
class Running:
    """A device that was started: the process that everything in it depends on."""

    name: str
    pid: int
    started: int  # of the process, in clock ticks since the machine's start: a pid may be used again
    port: int


class EmulatedDevice:
    """A device whose state lies in `folder`: its disk (an overlay on the shared tree), its keys, its log.

    As a context manager it runs inside the block, and is stopped even when this process is killed. The disk stays
    for the next start; `wipe` empties it. Several devices may run at once, each in a folder of its own.
    """

    def __init__(self, board: Board, folder: Path, *, name: str = "", port: int = 0) -> None:
        """port: 0 takes the one it had before if that is free, else any free one."""
        self.board = board
        self.folder = folder
        self.name = name or board.name
        self.identity = folder / "keys" / "client"  # the private key to log in with as pi or root
        self._wanted_port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmulatedDevice:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> Running | None:
        """The running device; None when it is not running. What a crash or a reboot has left is not believed."""
        try:
            state = Running(**json.loads((self.folder / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return state if _started_at(state.pid) == state.started else None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1 where its sshd listens; EmulationError when it does not run."""
        running = self.running
        if running is None:
            raise EmulationError(f"{self.name} is not running", remedy=f"make device-up {self.name}")
        return running.port

    @property
    def host_key(self) -> str:
        """Its public host key, as known_hosts has it: type and base64."""
        return " ".join((self.folder / "keys" / "host.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """Its host key's fingerprint, as ssh shows it."""
        digest = hashlib.sha256(base64.b64decode(self.host_key.split()[1])).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    def start(self, *, detached: bool = False) -> None:
        """Boot it and wait until sshd answers. detached: it goes on after this process has ended.

        Raises EmulationError when this machine cannot, when it runs already, or with the end of its log.
        """
        root = build_root_tree()
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            running = self.running
            if running is not None:
                raise EmulationError(
                    f"{self.name} is running already, on port {running.port}",
                    remedy=f"make device-down {self.name}",
                )
            self._prepare()
            for attempt in range(1 if self._wanted_port else PORT_TRIES):
                port = self._choose_port(attempt)
                if self._boot(root, port, detached):
                    return
        raise EmulationError(f"{self.name} did not start: {self.read_log()}")

    def stop(self) -> bool:
        """End it, and wait until nothing of it is left; False when it was not running."""
        running = self.running
        if running is None:
            return False
        # unshare passes no other signal on, and kills its child, process 1 of the device, when it dies.
        os.kill(running.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _started_at(running.pid) == running.started or not _is_free(running.port):
            if time.monotonic() > deadline:
                raise EmulationError(f"{self.name} does not stop", remedy=f"look at process {running.pid}")
            time.sleep(0.05)
        return True

    def wipe(self) -> None:
        """Empty its disk, as with a newly written SD card; its keys and its port stay. It must not be running."""
        if self.running is not None:
            raise EmulationError(f"{self.name} is running", remedy=f"make device-down {self.name}")
        for part in ("upper", "work"):
            shutil.rmtree(self.folder / part, ignore_errors=True)

    def copy_disk(self, folder: Path) -> None:
        """Give its disk, as it is at this moment, to the device in another folder, which must not have started yet."""
        folder.mkdir(parents=True, exist_ok=True)
        # cp knows hard links, owners and the overlay's own attributes.
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.folder / "upper"), str(folder / "upper")], check=True)

    def exec(
        self, command: str, *, user: str = "pi", stdin: bytes = b"", timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command on it over SSH; never raises for its exit code."""
        return subprocess.run(
            [*self.ssh_command(user), command], input=stdin, capture_output=True, timeout=timeout_s, check=False
        )

    def ssh_command(self, user: str = "pi") -> list[str]:
        """The words that open an SSH session to it, whatever the user's own SSH settings are."""
        options = ("BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={self.folder / 'known_hosts'}")
        settings = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", *settings, "-i", str(self.identity), "-p", str(self.port), f"{user}@127.0.0.1"]

    def read_log(self) -> str:
        """The end of what sshd and the boot script have said."""
        try:
            return (self.folder / "log").read_text(errors="replace")[-2000:].strip()
        except OSError:
            return ""

    def _prepare(self) -> None:
        for part in ("upper", "mount", "keys"):
            (self.folder / part).mkdir(exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "keys").chmod(0o700)
        # An overlay that was cut off leaves things in its work folder; only an empty one is sure to mount.
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        (self.folder / "work").mkdir()
        for name in ("client", "host"):
            key = self.folder / "keys" / name
            if not key.exists():
                _make_key(key, comment=f"{name} key of the emulated {self.name}")
        (self.folder / "cpuinfo").write_text(self.board.cpuinfo())
        (self.folder / "meminfo").write_text(self.board.meminfo())
        (self.folder / "model").write_bytes(self.board.model.encode() + b"\0")

    def _choose_port(self, attempt: int) -> int:
        if self._wanted_port:
            return self._wanted_port
        try:
            before = int(json.loads((self.folder / "state.json").read_text())["port"])
        except (OSError, ValueError, TypeError, KeyError):
            before = 0
        return before if attempt == 0 and before and _is_free(before) else find_free_port()

    def _boot(self, root: Path, port: int, detached: bool) -> bool:
        """Start the processes; False when sshd ended, which is what it does when its port was taken meanwhile."""
        words = [
            # The whole device ends with this process, also when that is killed.
            *(() if detached else ("setpriv", "--pdeathsig", "KILL")),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", str(BOOT_SCRIPT)),
            *(str(self.folder), str(root), self.name, self.board.qemu_cpu, str(port)),
        ]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", umask=0o022
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise EmulationError(
                    f"sshd on {self.name} did not answer in {START_TIMEOUT_S:.0f} s: {self.read_log()}"
                )
            time.sleep(0.1)
        started = _started_at(process.pid)
        if started is None:  # somebody else answers on that port
            process.wait()
            return False
        self._process = process
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {self.host_key}\n")
        self._write_state(Running(self.name, process.pid, started, port))
        return True

    def _write_state(self, running: Running) -> None:
        temporary = self.folder / ".state.json"
        temporary.write_text(json.dumps(asdict(running)))
        temporary.replace(self.folder / "state.json")


def find_free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections that were closed a moment ago do not keep sshd from listening, either.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _started_at(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine's start; None when there is none, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _make_key(path: Path, *, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
