"""Make a Debian tree usable that was unpacked and never configured: by hand what its maintainer scripts would do.

Running those scripts under emulation takes ten times as long as everything else.
"""

from __future__ import annotations

import os
from pathlib import Path

PI_UID = 1000
SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PidFile none
PrintMotd no
MaxStartups 100
Subsystem sftp /usr/lib/openssh/sftp-server
"""
BASHRC = "[ -r /etc/bash.bashrc ] && . /etc/bash.bashrc\n"


def finish_root(root: Path) -> None:
    """Accounts, sshd's settings, host name, home folders. Keys are not in here: each device gets its own."""
    _write_accounts(root)
    _write(root / "etc/ssh/sshd_config", SSHD_CONFIG)
    _write(root / "etc/hostname", "raspberrypi\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost raspberrypi\n::1 localhost\n")
    _write(root / "etc/fstab", "")
    # mmdebstrap copies the host's; a device of this kind has no name server, and needs none.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    for folder, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("run", 0o755), ("home/pi", 0o755), ("root", 0o700)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(mode)
    _write(root / "home/pi/.bashrc", BASHRC)
    for path in (root / "home/pi", root / "home/pi/.bashrc"):
        os.chown(path, PI_UID, PI_UID)
    for name, target in (("usr/bin/sh", "dash"), ("usr/bin/awk", "mawk")):
        if not os.path.lexists(root / name):
            (root / name).symlink_to(target)


def _write_accounts(root: Path) -> None:
    masters = root / "usr/share/base-passwd"
    # The masters have the password field "*"; "x" sends readers to the shadow file.
    accounts = [line.replace(":*:", ":x:", 1) for line in (masters / "passwd.master").read_text().splitlines()]
    accounts += [
        "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin",
        f"pi:x:{PI_UID}:{PI_UID}:,,,:/home/pi:/bin/bash",
    ]
    groups = [line.replace(":*:", ":x:", 1) for line in (masters / "group.master").read_text().splitlines()]
    _write(root / "etc/passwd", "\n".join(accounts) + "\n")
    _write(root / "etc/group", "\n".join([*groups, f"pi:x:{PI_UID}:"]) + "\n")
    # "*" is no password's hash, and unlike "!" it does not keep key logins out.
    shadow = "".join(f"{line.partition(':')[0]}:*:19000:0:99999:7:::\n" for line in accounts)
    _write(root / "etc/shadow", shadow, mode=0o640)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
