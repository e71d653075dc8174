"""A Dask cluster as a `concurrent.futures.Executor`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from edgeawq.errors import MissingExtraError, UsageError

CONNECT_TIMEOUT_S = 20


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and how many at a time."""

    executor: Executor
    n_workers: int


@contextmanager
def connect_cluster(address: str) -> Iterator[Cluster]:
    """The cluster whose scheduler answers at `address`, such as tcp://127.0.0.1:8786.

    A job whose worker is lost is given to another one, by Dask itself. Raises MissingExtraError without the package
    `distributed`, UsageError where no scheduler answers or it has no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtraError("distributed", "cluster") from error
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address!r}",
            remedy="start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`",
        ) from error
    try:
        n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if n_workers == 0:
            raise UsageError(
                f"the Dask scheduler at {address} has no workers",
                remedy=f"start some: dask worker {address} --nthreads 1",
            )
        # Blocks are written to files: a result that Dask remembers from another run would leave the file out.
        yield Cluster(client.get_executor(pure=False), n_workers)
    finally:
        client.close()
