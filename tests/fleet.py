"""A fleet of real worker processes for tests."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagefleet_producer import BrokerSettings, Client, StorageSettings
from imagefleet_shared.broker import connect
from imagefleet_shared.presence import live_workers
from localfleet.process import Process
from localfleet.servers import child_environment

REPOSITORY = Path(__file__).parents[1]


@dataclass
class TestFleet:
    """Worker processes that share a Redis and a store, with a client."""

    __test__ = False

    environment: Mapping[str, str]
    """Environment variables of every process: Redis, store, models."""
    folder: Path
    """For logs and the spool."""
    client: Client = field(init=False)
    workers: list[Process] = field(default_factory=list[Process])

    def __post_init__(self) -> None:
        self.broker = BrokerSettings(redis_url=self.environment["IMAGEFLEET_REDIS_URL"])
        self.client = Client(self.broker, StorageSettings())

    def start_worker(
        self, arguments: Sequence[str] = ("-m", "imagefleet_worker"), **settings: str
    ) -> Process:
        """Start a worker process and wait until it is ready; settings are given without prefix."""
        number = len(self.workers)
        named = {f"IMAGEFLEET_{name.upper()}": value for name, value in settings.items()}
        before = self._live()
        process = Process(
            name=f"worker-{number}",
            arguments=[sys.executable, *arguments],
            url=self.broker.redis_url,
            directory=REPOSITORY,
            log=self.folder / f"worker-{number}.log",
            environment=child_environment({**self.environment, **named}),
            ready=lambda _pid: bool(self._live() - before),
        )
        self.workers.append(process)
        return process.start()

    def start_sleeper(
        self, supervised: bool = False, models: bool = False, **settings: str
    ) -> Process:
        """Start a worker whose renderer only sleeps; `runs` returns what it rendered.

        It renders one job at a time, unless `max_batch_pixels` is set, and has no models, unless
        `models` is set.
        """
        options = [*(["--supervised"] if supervised else []), *(["--models"] if models else [])]
        arguments = ["-m", "tests.chaos.sleeping_worker", str(self.runs_file), *options]
        return self.start_worker(arguments, **{"max_batch_pixels": "0", **settings})

    @property
    def runs_file(self) -> Path:
        """The file to which sleeping workers append the jobs that they render."""
        return self.folder / "runs"

    def runs(self) -> list[str]:
        """Names of the jobs that sleeping workers began to render, in order."""
        return self.runs_file.read_text().splitlines() if self.runs_file.exists() else []

    def close(self) -> None:
        """Kill all workers and close the client."""
        for worker in self.workers:
            worker.kill()
        self.client.close()

    def _live(self) -> set[str]:
        with connect(self.broker, retries=2) as redis:
            return {worker.name for worker in live_workers(redis)}


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait until a condition is true; returns the seconds it took, fails after `timeout_s`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started
