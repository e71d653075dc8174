"""Which cipher suits a device's CPU. The figures behind it: docs/benchmarks.md, `python -m benchmarks.ssh_ciphers`."""

from __future__ import annotations

import re

# With AES instructions GCM costs least, and no separate MAC. Without them ChaCha20-Poly1305 costs half of what AES
# does, but paramiko does not have it; of what it has, counter mode with SHA-512 comes next.
WITH_AES = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"
WITHOUT_AES = "chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com"

# For ciphers that need a MAC: SHA-512 is quicker than SHA-256 on a 64-bit CPU without instructions for either.
MACS_WITHOUT_AES = ("hmac-sha2-512-etm@openssh.com", "hmac-sha2-512")

CHACHA_HINT = (
    'this CPU has no AES instructions: with transport = "openssh" (--transport openssh) an upload costs it about half, '
    "as the system's ssh has ChaCha20-Poly1305"
)


def has_aes(cpuinfo: str) -> bool | None:
    """True when /proc/cpuinfo says that the CPU has AES instructions; None when it does not list its features."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return "aes" in found.group(1).split() if found else None


def propose_ciphers(cpuinfo: str, transport: str) -> str:
    """Return the inventory's `cipher` for a device: "" where the transport's own order is the right one already."""
    if transport == "local":
        return ""
    aes = has_aes(cpuinfo)
    if aes is None or aes is (transport == "ssh"):
        # The built-in transport prefers GCM, OpenSSH prefers ChaCha20.
        return ""
    return WITH_AES if aes else WITHOUT_AES
