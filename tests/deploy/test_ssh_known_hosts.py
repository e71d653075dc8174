from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeawq.deploy.ssh_known_hosts import (
    format_fingerprint,
    hash_host_name,
    judge_host_key,
    load_known_hosts,
    name_host,
    parse_known_hosts,
    preferred_key_types,
    record_host_key,
)
from edgeawq.errors import HostKeyError

KEY = b"\0\0\0\x0bssh-ed25519 some key"
OTHER = b"\0\0\0\x0bssh-ed25519 another one"


def line(names: str, key: bytes = KEY, kind: str = "ssh-ed25519", marker: str = "") -> str:
    return f"{marker} {names} {kind} {base64.b64encode(key).decode()} comment\n".lstrip()


@pytest.mark.parametrize(
    ("names", "host", "verdict"),
    [
        ("pi.local", "pi.local", "known"),
        ("a,pi.local,b", "pi.local", "known"),
        ("PI.local", "pi.local", "known"),
        ("pi.local", "[pi.local]:2222", "unknown"),
        ("[pi.local]:2222", "[pi.local]:2222", "known"),
        ("[pi.local]:2222", "pi.local", "unknown"),
        ("*.local", "pi.local", "known"),
        ("*.local,!pi.local", "pi.local", "unknown"),
        ("!pi.local,*.local", "pi.local", "unknown"),
        ("pi?.local", "pi4.local", "known"),
        ("[*.local]:2222", "[pi.local]:2222", "known"),
        (hash_host_name("pi.local", b"salt" * 5), "pi.local", "known"),
        (hash_host_name("[pi.local]:2222", b"salt" * 5), "[pi.local]:2222", "known"),
        (hash_host_name("pi.local", b"salt" * 5), "pi2.local", "unknown"),
        ("|1|not base64|x", "pi.local", "unknown"),
    ],
)
def test_matches_names(names: str, host: str, verdict: str) -> None:
    assert judge_host_key(parse_known_hosts(line(names), "f"), host, KEY).verdict == verdict


def test_another_key_has_changed_and_the_line_is_named() -> None:
    entries = parse_known_hosts("# comment\n\n" + line("pi"), "/home/me/.ssh/known_hosts")
    finding = judge_host_key(entries, "pi", OTHER)
    assert finding.verdict == "changed"
    assert [(entry.path, entry.line) for entry in finding.entries] == [("/home/me/.ssh/known_hosts", 3)]


def test_one_of_several_keys_is_enough() -> None:
    entries = parse_known_hosts(line("pi", OTHER) + line("pi", b"rsa", "ssh-rsa") + line("pi"), "f")
    assert judge_host_key(entries, "pi", KEY).verdict == "known"


def test_a_revoked_key_is_refused_even_if_it_is_known_too() -> None:
    entries = parse_known_hosts(line("pi") + line("*", marker="@revoked"), "f")
    assert judge_host_key(entries, "pi", KEY).verdict == "revoked"
    assert judge_host_key(entries, "pi", OTHER).verdict == "changed"


def test_an_authority_is_no_host_key() -> None:
    entries = parse_known_hosts(line("pi", marker="@cert-authority"), "f")
    assert judge_host_key(entries, "pi", KEY).verdict == "unknown"


def test_lines_that_are_not_understood_are_passed_over() -> None:
    assert parse_known_hosts("pi\npi ssh-rsa\npi ssh-rsa %%%\n@revoked\n", "f") == []


def test_prefers_the_types_on_record() -> None:
    entries = parse_known_hosts(line("pi", b"r", "ssh-rsa") + line("pi", KEY) + line("x", b"e", "ecdsa"), "f")
    assert preferred_key_types(entries, "pi") == ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"]


def test_records_a_key_that_is_then_known(tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "known_hosts"
    path.parent.mkdir()
    path.write_text(line("old").rstrip("\n"))  # a last line without its end must not swallow the new one
    record_host_key(path, "[pi]:22222", "ssh-ed25519", KEY)
    record_host_key(path, "hidden", "ssh-ed25519", OTHER, hash_name=True)
    entries = load_known_hosts([tmp_path / "missing", path])
    assert len(entries) == 3 and "hidden" not in path.read_text()
    assert judge_host_key(entries, "[pi]:22222", KEY).verdict == "known"
    assert judge_host_key(entries, "hidden", OTHER).verdict == "known"


def test_makes_the_file_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "known_hosts"
    record_host_key(path, "pi", "ssh-ed25519", KEY)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_an_unreadable_file_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(HostKeyError, match="cannot be read"):
        load_known_hosts([tmp_path])


def test_names_a_host_as_ssh_does() -> None:
    assert name_host("Pi.local", 22) == "pi.local"
    assert name_host("fe80::1", 2222) == "[fe80::1]:2222"


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs OpenSSH's ssh-keygen")
def test_agrees_with_openssh(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    kind, blob = key.with_suffix(".pub").read_text().split()[:2]
    shown = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True).stdout
    assert format_fingerprint(base64.b64decode(blob)) in shown.split()
    known = tmp_path / "known_hosts"
    known.write_text(f"[pi.local]:2022 {kind} {blob}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "pi.local" not in known.read_text()
    entries = load_known_hosts([known])
    assert judge_host_key(entries, "[pi.local]:2022", base64.b64decode(blob)).verdict == "known"
    record_host_key(known, "second", "ssh-ed25519", base64.b64decode(blob), hash_name=True)
    found = subprocess.run(["ssh-keygen", "-F", "second", "-f", str(known)], capture_output=True, text=True)
    assert blob in found.stdout
