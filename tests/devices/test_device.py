"""Starting and stopping emulated devices, and what is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.boards import PI4, PI5
from tests.devices.device import EmulatedDevice
from tests.devices.errors import EmulationError

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
HWCAP_DOT_PRODUCT = 1 << 20
OWNER = """
import sys, time
from pathlib import Path
from tests.devices.boards import PI4
from tests.devices.device import EmulatedDevice
device = EmulatedDevice(PI4, Path(sys.argv[1]))
device.start()
print(device.port, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def folder(root_tree: Path, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "device"
    shutil.rmtree(tmp_path / "device", ignore_errors=True)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_processes(folder: Path) -> list[str]:
    """Command lines of this machine's processes that name the folder, or have it mounted."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = process.joinpath("cmdline").read_text() + process.joinpath("mounts").read_text()
        except OSError:
            continue
        if str(folder) in text:
            found.append(process.name)
    return found


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while find_processes(folder):
        assert time.monotonic() < deadline, find_processes(folder)
        time.sleep(0.1)


def test_nothing_is_left_after_a_stop_but_its_disk(folder: Path) -> None:
    with EmulatedDevice(PI4, folder) as device:
        port, key = device.port, device.fingerprint
        assert (
            device.exec("echo kept > note; sleep 999 >/dev/null 2>&1 & cat /proc/cpuinfo").stdout.count(b"0xd08") == 4
        )
        assert is_listening(port) and find_processes(folder)
        with pytest.raises(EmulationError, match=f"running already, on port {port}"):
            EmulatedDevice(PI4, folder).start()
    assert not device.stop()
    assert not is_listening(port)
    wait_until_gone(folder)
    with EmulatedDevice(PI4, folder) as again:
        assert (again.port, again.fingerprint) == (port, key)  # so that inventory and known_hosts stay right
        assert again.exec("cat note").stdout == b"kept\n"
    again.wipe()
    with again:
        assert again.exec("cat note").returncode != 0


def test_two_at_once_have_disks_and_processors_of_their_own(folder: Path) -> None:
    with EmulatedDevice(PI4, folder / "a") as one, EmulatedDevice(PI5, folder / "b") as other:
        assert one.port != other.port
        one.exec("touch only-here")
        assert b"only-here" in one.exec("ls").stdout and b"only-here" not in other.exec("ls").stdout
        models = [device.exec("cat /sys/firmware/devicetree/base/model").stdout for device in (one, other)]
        assert models == [b"Raspberry Pi 4 Model B Rev 1.4\0", b"Raspberry Pi 5 Model B Rev 1.0\0"]
        show = "LD_SHOW_AUXV=1 /bin/true | grep HWCAP:"
        assert int(one.exec(show).stdout.split()[1], 16) & HWCAP_DOT_PRODUCT == 0
        assert int(other.exec(show).stdout.split()[1], 16) & HWCAP_DOT_PRODUCT


def test_a_device_ends_with_the_process_that_started_it(folder: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    port = int(owner.stdout.readline())
    assert is_listening(port)
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    wait_until_gone(folder)
    with EmulatedDevice(PI4, folder) as device:  # what the crash has left is cleaned up
        assert device.exec("true").returncode == 0


def test_a_port_that_is_taken_is_an_error_with_the_reason(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EmulationError, match="did not (start|answer)"):
            EmulatedDevice(PI4, folder, port=taken.getsockname()[1]).start()
    wait_until_gone(folder)
