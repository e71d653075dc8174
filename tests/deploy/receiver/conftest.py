"""A receiver for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.receiver.driver import Wire


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The device's folder; not there yet."""
    return tmp_path / "root"


@pytest.fixture
def wire(root: Path) -> Iterator[Wire]:
    """A receiver that has greeted."""
    wire = Wire(root)
    yield wire
    wire.kill()
