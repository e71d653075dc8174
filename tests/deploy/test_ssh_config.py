from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.ssh_config import Endpoint, parse_jump, resolve_endpoint, split_host_port
from edgeawq.errors import UsageError


def resolve(text: str, tmp_path: Path, **device: object) -> Endpoint:
    config = tmp_path / "ssh_config"
    config.write_text(text)
    return resolve_endpoint(Device(name="d", **{"host": "pi4", **device}), (config,))  # type: ignore[arg-type]


def test_defaults(tmp_path: Path, isolated_home: Path) -> None:
    endpoint = resolve_endpoint(Device(name="d", host="10.0.0.4"), (tmp_path / "missing",))
    assert (endpoint.host, endpoint.port, endpoint.user) == ("10.0.0.4", 22, getpass.getuser())
    assert endpoint.known_hosts_files[0] == isolated_home / ".ssh" / "known_hosts"
    assert Path("/etc/ssh/ssh_known_hosts") in endpoint.known_hosts_files
    assert endpoint.jumps == () and not endpoint.identities_only


CONFIG = """
Host pi4
    HostName 192.168.1.44
    User pi
    Port 2022
    IdentityFile ~/.ssh/pi_key
    IdentitiesOnly yes
    HostKeyAlias the-pi
    UserKnownHostsFile ~/.ssh/boards ~/.ssh/more
    HashKnownHosts yes
    ConnectTimeout 3
"""


def test_takes_what_the_ssh_configuration_says(tmp_path: Path, isolated_home: Path) -> None:
    endpoint = resolve(CONFIG, tmp_path)
    assert (endpoint.host, endpoint.port, endpoint.user) == ("192.168.1.44", 2022, "pi")
    assert endpoint.identity_files == (isolated_home / ".ssh" / "pi_key",) and endpoint.identities_only
    assert endpoint.host_key_alias == "the-pi" and endpoint.hash_known_hosts
    assert endpoint.known_hosts_files[:2] == (isolated_home / ".ssh/boards", isolated_home / ".ssh/more")
    assert endpoint.connect_timeout_s == 3.0


def test_the_inventory_wins(tmp_path: Path) -> None:
    endpoint = resolve(CONFIG, tmp_path, user="me", port=22, identity_file="/k", known_hosts_file="/kh")
    assert (endpoint.user, endpoint.port, endpoint.identity_files) == ("me", 22, (Path("/k"),))
    assert endpoint.known_hosts_files[0] == Path("/kh")


def test_include_is_read_in_place_and_ends_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a").write_text("Host other\n  User wrong\nHost pi4\n  Port 2201\n")
    endpoint = resolve("Include parts/*\nUser global\n", tmp_path)
    assert (endpoint.port, endpoint.user) == (2201, "global")
    assert resolve("Host nope\n  Include parts/*\n  User hidden\n", tmp_path, user="u").user == "u"


def test_an_include_that_includes_itself_ends(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nested"):
        resolve("Include ssh_config\n", tmp_path)


def test_resolves_jump_hosts_by_their_own_entries(tmp_path: Path) -> None:
    text = """
Host pi4
    ProxyJump bastion,ops@10.9.9.9:2200
Host bastion
    HostName bastion.example.org
    User jump
    ProxyJump outer
Host outer
    HostName outer.example.org
"""
    endpoint = resolve(text, tmp_path)
    assert [(hop.host, hop.user, hop.port) for hop in endpoint.jumps] == [
        ("outer.example.org", getpass.getuser(), 22),
        ("bastion.example.org", "jump", 22),
        ("10.9.9.9", "ops", 2200),
    ]
    assert resolve("Host *\n ProxyJump none\n", tmp_path).jumps == ()


def test_a_jump_host_that_jumps_through_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jump hosts"):
        resolve("Host *\n  ProxyJump bastion\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Host *\n Port 99999\n", "99999"),
        ("Host *\n ConnectTimeout soon\n", "soon"),
        ("Host *\n ProxyJump user@\n", "user@"),
    ],
)
def test_names_what_it_cannot_use(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        resolve(text, tmp_path)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("pi", "pi", None),
        ("pi:22", "pi", 22),
        ("fe80::1", "fe80::1", None),
        ("[fe80::1]", "fe80::1", None),
        ("[fe80::1]:2222", "fe80::1", 2222),
    ],
)
def test_splits_addresses(address: str, host: str, port: int | None) -> None:
    assert split_host_port(address) == (host, port)


@pytest.mark.parametrize("address", ["pi:0", "pi:65536", "pi:x", "pi:²", "[fe80::1", "[fe80::1]x"])
def test_refuses_addresses(address: str) -> None:
    with pytest.raises(UsageError):
        split_host_port(address)


def test_parses_jumps() -> None:
    assert parse_jump("ssh://me@[::1]:22/") == ("::1", "me", 22)
    with pytest.raises(UsageError):
        parse_jump("-oProxyCommand=x")


def test_a_proxy_command_gets_the_values_that_count(tmp_path: Path) -> None:
    text = "Host pi4\n HostName 10.0.0.4\n Port 7\n User me\n ProxyCommand relay %h %p %r\n"
    assert resolve(text, tmp_path).proxy_command == "relay 10.0.0.4 7 me"
    assert resolve(text, tmp_path, port=9, user="pi").proxy_command == "relay 10.0.0.4 9 pi"
    assert resolve("Host *\n ProxyCommand none\n", tmp_path).proxy_command == ""
    assert resolve("Host pi4\n ProxyJump bastion\n ProxyCommand relay\n", tmp_path).proxy_command == ""


def test_certificates_and_ciphers(tmp_path: Path, isolated_home: Path) -> None:
    endpoint = resolve("Host pi4\n CertificateFile ~/.ssh/pi-cert.pub\n", tmp_path, cipher="aes256-ctr,aes128-ctr")
    assert endpoint.certificate_files == (isolated_home / ".ssh" / "pi-cert.pub",)
    assert endpoint.ciphers == ("aes256-ctr", "aes128-ctr")
