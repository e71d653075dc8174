"""A stage for each file of fault tests: made once, copied for each case."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.deploy.faults.harness import Stage, make_stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A device with a small release."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEAWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def large_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A device with a release whose weights have several chunks, most of which the new release shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEAWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_stage(tmp_path_factory.mktemp("large"), weights_bytes=13_000_000, shared=True)


@pytest.fixture(scope="module")
def wide_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A device with a release whose weights have several chunks, none of which the new release shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEAWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_stage(tmp_path_factory.mktemp("wide"), weights_bytes=13_000_000)


@pytest.fixture
def as_root() -> None:
    """Skip where the test would have to mount something and may not."""
    if os.getuid() != 0:
        pytest.skip("mounting file systems needs root")
