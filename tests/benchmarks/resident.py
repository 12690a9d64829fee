"""A process that sets up one contender of a benchmark and then renders on request."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from imagefleet_producer import GenerateRequest

Contender = Callable[[Sequence[GenerateRequest]], float]
"""Renders requests and returns the number of batches."""


@dataclass(frozen=True)
class Measurement:
    """Time and number of batches for some jobs."""

    seconds: float
    batches: float


class BenchmarkProcess:
    """Renders requests in its own process, so that contenders' threads do not slow each other.

    Args:
        make: called in the process; returns a warm contender.
    """

    def __init__(self, factory: Callable[[], Contender]) -> None:
        spawn = get_context("spawn")
        self._connection, child_connection = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(factory, child_connection), daemon=True)
        self._process.start()
        child_connection.close()
        self._connection.recv()

    def __call__(self, requests: Sequence[GenerateRequest]) -> Measurement:
        """Render the requests.

        Raises:
            EOFError: the process failed; its standard error has the traceback.
        """
        self._connection.send(list(requests))
        return self._connection.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join()


def _serve(factory: Callable[[], Contender], connection: Connection) -> None:
    contender = factory()
    connection.send("ready")
    # Until the other end closes.
    with suppress(EOFError):
        while True:
            requests = connection.recv()
            started = time.perf_counter()
            batches = contender(requests)
            connection.send(Measurement(time.perf_counter() - started, batches))
