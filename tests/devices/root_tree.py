"""Build the arm64 Debian tree that all emulated devices share: once, then it lies in the cache.

It holds what a fresh Raspberry Pi OS has that matters here: sshd, Python 3.11, a shell. No numpy, no pip, no compiler.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.devices import root_files
from tests.devices.binfmt import register_qemu
from tests.devices.cache import cache_folder, locked
from tests.devices.errors import EmulationError
from tests.devices.requirements import check_requirements

SUITE = "bookworm"
PYTHON = "3.11"  # what bookworm has
PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "gzip", "hostname"),
    *("libc-bin", "libstdc++6", "login", "mawk", "mount", "ncurses-base", "procps", "sed", "tar", "util-linux"),
    *("openssh-server", "openssh-sftp-server", "python3"),
)
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
PACKAGE_LIST = "packages.txt"
RECIPE_VERSION = 1


def build_root_tree(say: Callable[[str], None] = lambda text: None) -> Path:
    """Return the folder of the tree, which nobody may write to; build it if the cache has none for this recipe.

    Takes about a minute the first time, and 110 MB. Beside the tree lies packages.txt with the version of every
    package in it. A build that is cut short leaves nothing that a later one would take for a tree.
    Raises EmulationError, with the end of what the failed program said.
    """
    check_requirements()
    register_qemu()
    roots = cache_folder() / "roots"
    final = roots / hash_recipe()
    with locked(roots / ".lock"):
        if (final / "root").is_dir():
            return final / "root"
        for leftover in roots.glob(".building-*"):  # the lock is ours, so nobody is building
            shutil.rmtree(leftover)
        working = Path(tempfile.mkdtemp(prefix=".building-", dir=roots))
        working.chmod(0o755)
        started = time.monotonic()
        say(f"building an arm64 Debian {SUITE} tree, once; about a minute")
        _unpack(working / "root")
        root_files.finish_root(working / "root")
        (working / "root" / PACKAGE_LIST).rename(working / PACKAGE_LIST)
        _compile_python(working / "root")
        os.rename(working, final)
        say(f"built {final} in {time.monotonic() - started:.0f} s")
    return final / "root"


def hash_recipe() -> str:
    """A name for the tree: other packages or another way to make it give another name."""
    recipe = json.dumps([RECIPE_VERSION, SUITE, PACKAGES, LEFT_OUT]).encode()
    return hashlib.sha256(recipe + Path(root_files.__file__).read_bytes()).hexdigest()[:16]


def _unpack(root: Path) -> None:
    command = [
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--architectures=arm64",
        "--variant=extract",  # unpack only: configuring runs hundreds of programs, each of them emulated
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=Acquire::Languages "none"',
        "--aptopt=Acquire::Retries 3",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        f'--extract-hook=cd "$1"/var/cache/apt/archives && ls *.deb | xargs -n 1 dpkg-deb --show > "$1"/{PACKAGE_LIST}',
        SUITE,
        str(root),
    ]
    # In namespaces that end with this process: a build that is killed leaves no mount and no program behind.
    isolated = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *command,
    ]
    done = subprocess.run(
        isolated,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        umask=0o022,
        check=False,
    )
    if done.returncode:
        raise EmulationError(
            f"mmdebstrap could not make the arm64 tree: {(done.stdout + done.stderr).strip()[-600:]}",
            remedy="it needs Debian's package mirror (deb.debian.org) and 300 MB of free space; then try again",
        )


def _compile_python(root: Path) -> None:
    """Byte-compile the tree's standard library, as installing it on a device does: start-up is 3 times as fast."""
    folders = [f"/usr/lib/python{PYTHON}", "/usr/lib/python3"]
    python = _find_same_python()
    if python:
        command = [python, "-m", "compileall", "-q", "-s", str(root), "-p", "/", *(f"{root}{path}" for path in folders)]
    else:
        command = ["chroot", str(root), f"/usr/bin/python{PYTHON}", "-m", "compileall", "-q", *folders]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, umask=0o022, check=False)
    # lib2to3 has files that do not compile on purpose; what matters is that the modules of the start are there.
    if not list((root / f"usr/lib/python{PYTHON}/__pycache__").glob("os.*.pyc")):
        raise EmulationError(f"the tree's Python library does not compile: {done.stderr.strip()[-600:]}")


def _find_same_python() -> str | None:
    """A Python here whose compiled files the tree's Python takes."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON:
        return sys.executable
    return shutil.which(f"python{PYTHON}")
