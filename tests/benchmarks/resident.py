"""A process that makes something once and then runs it as often as it is asked."""

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
"""Draws requests; gives the number of batches in which it did."""


@dataclass(frozen=True)
class Drawn:
    """What it took to draw some jobs."""

    seconds: float
    batches: float


class Resident:
    """Draws requests in a process of its own, so that no contender's threads slow another.

    Args:
        make: called in the process; its result is warm when it is returned.
    """

    def __init__(self, make: Callable[[], Contender]) -> None:
        spawn = get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()

    def __call__(self, requests: Sequence[GenerateRequest]) -> Drawn:
        """Have them drawn.

        Raises:
            EOFError: the process failed; it has said why on its standard error.
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


def _serve(make: Callable[[], Contender], connection: Connection) -> None:
    contender = make()
    connection.send("ready")
    # Until the other end is closed.
    with suppress(EOFError):
        while True:
            requests = connection.recv()
            started = time.perf_counter()
            batches = contender(requests)
            connection.send(Drawn(time.perf_counter() - started, batches))
