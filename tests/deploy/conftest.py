"""Fixtures of the deploy tests: a home of their own, a fake device, bundles and site folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.push import PrepareSite
from tests.deploy.fakes import make_bundle, make_site
from tests.deploy.sshd import SshServer


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing here may read or write the user's own home, agent, inventory or cache."""
    home = tmp_path_factory.mktemp("host-home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".state"))
    monkeypatch.setenv("EDGEAWQ_CACHE", str(home / "cache"))
    for name in ("SSH_AUTH_SOCK", "EDGEAWQ_INVENTORY", "EDGEAWQ_SSH_PASSWORD", "EDGEAWQ_LOCAL_ROOT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("EDGEAWQ_KEYS", "EDGEAWQ_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A running sshd."""
    server = SshServer(tmp_path / "sshd")
    yield server
    server.stop()


@pytest.fixture
def local_device(tmp_path: Path) -> Device:
    """This machine as a device, with its releases in a temporary folder."""
    import sys

    return Device(name="localhost", transport="local", root=str(tmp_path / "root"), python=sys.executable)


@pytest.fixture
def site(tmp_path: Path) -> PrepareSite:
    """What `push` calls to get a site folder."""
    folder = make_site(tmp_path / "site")
    return lambda python, machine, report: folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A good bundle."""
    return make_bundle(tmp_path / "one.edgeawq")
