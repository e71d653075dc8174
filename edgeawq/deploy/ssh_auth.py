"""Logging in: identity files, the agent, certificates, and a password when nothing else helps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    load_ssh_public_identity,
)
from paramiko.pkey import UnknownKeyType

from edgeawq.deploy.ssh_config import DEFAULT_IDENTITIES, Endpoint
from edgeawq.deploy.ssh_errors import CONNECTION_FAILURES, explain_handshake_failure, explain_login_refused
from edgeawq.errors import AuthenticationError

# sshd's MaxAuthTries is 6: an agent full of keys must not use all of them up before the password.
MAX_AGENT_KEYS = 4
MAX_CERTIFICATE_BYTES = 1 << 20
PASSWORD_ATTEMPTS = 3


class AskSecret(Protocol):
    """Where a password or passphrase comes from; None when nobody can be asked."""

    def __call__(self, question: str) -> str | None: ...


def log_in(transport: paramiko.Transport, endpoint: Endpoint, ask: AskSecret) -> None:
    """Log in to `endpoint` or raise AuthenticationError, which lists what was tried.

    Order, as ssh does it: identity files that the user named, the agent, the default identity files,
    then the password from $EDGEAWQ_SSH_PASSWORD or from `ask`.
    """
    tried: list[str] = []
    allowed: list[str] = []
    try:
        # Like ssh, ask first what is allowed: sshd does not count this as a failed attempt.
        allowed.extend(_ask_allowed_ways(transport, endpoint.user))
        if transport.is_authenticated():
            return
        if "publickey" in allowed and _try_keys(transport, endpoint, ask, tried):
            return
        if _try_passwords(transport, endpoint, ask, tried, allowed):
            return
    except CONNECTION_FAILURES as error:
        if tried:  # sshd hangs up after MaxAuthTries failures
            raise explain_login_refused(endpoint, [*tried, f"then the device hung up: {error}"], allowed) from error
        raise explain_handshake_failure(error, endpoint) from error
    raise explain_login_refused(endpoint, tried, allowed)


def load_key(path: Path, ask: AskSecret) -> paramiko.PKey:
    """Read a private key (and its certificate, if there is one); ask for its passphrase if it has one."""
    try:
        key = _read_key(path, None)
    except paramiko.PasswordRequiredException:
        passphrase = ask(f"Passphrase of {path}: ")
        if passphrase is None:
            raise AuthenticationError(
                f"the key {path} has a passphrase, and there is no terminal to ask for it",
                remedy="add the key to the agent with `ssh-add`",
            ) from None
        try:
            key = _read_key(path, passphrase)
        except (paramiko.SSHException, ValueError) as error:
            raise AuthenticationError(f"the passphrase of {path} is wrong", remedy="try again") from error
    return key


def _candidate_keys(endpoint: Endpoint, ask: AskSecret, tried: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    for path in endpoint.identity_files:
        if not path.exists():
            tried.append(f"key {path}, which does not exist")
            continue
        yield from _with_certificates(path, load_key(path, ask), endpoint.certificate_files)
    if not endpoint.identities_only:
        agent = paramiko.Agent()
        try:
            # The key that the user named is often in the agent too, and has been tried.
            for key in agent.get_keys()[:MAX_AGENT_KEYS]:
                yield f"agent key {key.comment or key.get_name()}", key
        finally:
            agent.close()
    if not endpoint.identity_files:
        for path in (Path(name).expanduser() for name in DEFAULT_IDENTITIES):
            if path.exists():
                yield from _with_certificates(path, load_key(path, ask), endpoint.certificate_files)


def _with_certificates(
    path: Path, key: paramiko.PKey, certificate_files: tuple[Path, ...]
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield `key` with each certificate that is about it, then the key alone: a certificate may have run out."""
    own = path.with_name(f"{path.name}-cert.pub")
    for certificate in dict.fromkeys((own, *certificate_files)):
        if certificate.exists() and _read_certified_key(certificate) == key.get_base64():
            key.public_blob = None
            key.load_certificate(str(certificate))
            yield f"key {path} with certificate {certificate}", key
    key.public_blob = None
    yield f"key {path}", key


def _read_certified_key(path: Path) -> str:
    """Return the public key, in base64, that the certificate in `path` is about; "" when it is no certificate."""
    try:
        if path.stat().st_size > MAX_CERTIFICATE_BYTES:
            return ""
        identity = load_ssh_public_identity(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm):
        return ""
    if not isinstance(identity, SSHCertificate):
        return ""
    return identity.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode().split()[1]


def _read_key(path: Path, passphrase: str | None) -> paramiko.PKey:
    try:
        # As bytes: from_path hands it to cryptography as it is. (The stubs say text.)
        secret: Any = None if passphrase is None else passphrase.encode()
        return paramiko.PKey.from_path(path, secret)
    except TypeError as error:
        # cryptography's way to say that an encrypted key was read without a passphrase
        raise paramiko.PasswordRequiredException(str(error)) from error
    except (OSError, ValueError, UnknownKeyType) as error:
        if "password" in str(error).lower() and passphrase is None:
            raise paramiko.PasswordRequiredException(str(error)) from error
        if passphrase is not None:
            raise
        raise AuthenticationError(
            f"the key {path} cannot be read: {error}", remedy="is it a private key in OpenSSH's or PEM format?"
        ) from error


def _try_keys(transport: paramiko.Transport, endpoint: Endpoint, ask: AskSecret, tried: list[str]) -> bool:
    for label, key in _candidate_keys(endpoint, ask, tried):
        tried.append(label)
        with contextlib.suppress(paramiko.AuthenticationException):
            transport.auth_publickey(endpoint.user, key)
        if transport.is_authenticated():
            return True
    return False


def _ask_allowed_ways(transport: paramiko.Transport, user: str) -> list[str]:
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    return []


def _try_passwords(
    transport: paramiko.Transport, endpoint: Endpoint, ask: AskSecret, tried: list[str], allowed: list[str]
) -> bool:
    if not {"password", "keyboard-interactive"} & set(allowed):
        return False
    from_environment = os.environ.get("EDGEAWQ_SSH_PASSWORD")
    for _ in range(1 if from_environment else PASSWORD_ATTEMPTS):
        password = from_environment or ask(f"Password of {endpoint.address}: ")
        if password is None:
            return False
        tried.append("password")
        if _try_password(transport, endpoint.user, password, allowed):
            return True
    return False


def _try_password(transport: paramiko.Transport, user: str, password: str, allowed: list[str]) -> bool:
    def answer(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        # PAM asks for the password as its one hidden question; anything else is not ours to answer.
        return [password if not shown else "" for _, shown in prompts]

    with contextlib.suppress(paramiko.AuthenticationException):
        if "password" in allowed:
            transport.auth_password(user, password, fallback=False)
        else:
            transport.auth_interactive(user, answer)
    return bool(transport.is_authenticated())
