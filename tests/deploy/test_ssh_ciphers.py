from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import load_inventory
from edgeawq.deploy.ssh import SshTransport
from edgeawq.deploy.ssh_ciphers import CHACHA_HINT, WITH_AES, WITHOUT_AES, has_aes, propose_ciphers
from tests.deploy.sshd import SshServer, install_own_ssh
from tests.deploy.test_cli import Shell

PI4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
PI5 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics\n"
X86 = "processor\t: 0\nflags\t\t: fpu sse2 vaes\n"


def test_reads_the_features() -> None:
    assert has_aes(PI4) is False and has_aes(PI5) is True
    assert has_aes(X86) is False, "vaes is another instruction"
    assert has_aes("processor : 0\n") is None


@pytest.mark.parametrize(
    ("cpuinfo", "transport", "ciphers"),
    [
        (PI4, "ssh", WITHOUT_AES),
        (PI4, "openssh", ""),  # ChaCha20 is what OpenSSH itself prefers
        (PI5, "ssh", ""),  # GCM is what the built-in transport itself prefers
        (PI5, "openssh", WITH_AES),
        ("", "ssh", ""),
        ("", "openssh", ""),
        (PI5, "local", ""),
    ],
)
def test_proposes_what_suits_the_cpu(cpuinfo: str, transport: str, ciphers: str) -> None:
    assert propose_ciphers(cpuinfo, transport) == ciphers


@pytest.mark.server
def test_without_aes_counter_mode_with_sha_512_is_used(server: SshServer) -> None:
    with connect(server.device(cipher=WITHOUT_AES)) as transport:
        assert isinstance(transport, SshTransport) and transport.cipher == "aes128-ctr"
        assert transport._transports[-1].local_mac == "hmac-sha2-512-etm@openssh.com"
        assert transport.run("echo there").stdout == b"there\n"


@pytest.mark.server
@pytest.mark.parametrize("kind", ["ssh", "openssh"])
def test_device_add_remembers_how_to_connect(
    server: SshServer, kind: str, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_own_ssh(tmp_path / "own-ssh", isolated_home, monkeypatch)
    server.known_hosts.unlink()
    shell = Shell(tmp_path)
    options = ["--identity", str(server.identity), "--known-hosts", str(server.known_hosts), "--profile", "host"]
    address = f"{server.user}@127.0.0.1:{server.port}"
    add = ["device", "add", "board", address, *options, "--transport", kind]
    assert "is not known" in shell.bad(*add, code=5), "nobody is there to accept the host key"
    shown = json.loads(shell.good(*add, "--yes", "--limit-rate", "5M", "--json"))
    device = load_inventory(shell.inventory).get("board")
    assert (device.transport, device.bandwidth_limit) == (kind, "5M")
    aes = has_aes(Path("/proc/cpuinfo").read_text())
    assert device.cipher == propose_ciphers(Path("/proc/cpuinfo").read_text(), kind) == shown["cipher"]
    assert (CHACHA_HINT in shown["note"]) == (aes is False and kind == "ssh")
    shell.good("device", "show", "board")
    shell.bad(*add, "--replace", "--limit-rate", "fast", code=2)
    shell.bad(*add, "--replace", "--cipher", "a b", code=2)
    shell.good(*add, "--replace", "--cipher", "aes256-ctr")
    assert load_inventory(shell.inventory).get("board").cipher == "aes256-ctr"
