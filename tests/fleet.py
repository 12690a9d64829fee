"""A fleet of real worker processes for a test."""

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
    """Worker processes on one Redis and one store, and the client that uses them."""

    __test__ = False

    environment: Mapping[str, str]
    """Of every process: Redis, store, models."""
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
        """Start a worker process and wait until it serves; settings without their prefix."""
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
        """Start a worker whose engine sleeps; its renderings are in `runs`.

        It takes one job at a time, unless `max_batch_pixels` says otherwise, and looks for no
        models, unless `models` says so.
        """
        options = [*(["--supervised"] if supervised else []), *(["--models"] if models else [])]
        arguments = ["-m", "tests.chaos.sleeping_worker", str(self.runs_file), *options]
        return self.start_worker(arguments, **{"max_batch_pixels": "0", **settings})

    @property
    def runs_file(self) -> Path:
        """Where sleepers write down what they render."""
        return self.folder / "runs"

    def runs(self) -> list[str]:
        """Names of the jobs that sleepers began to render, in order."""
        return self.runs_file.read_text().splitlines() if self.runs_file.exists() else []

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            worker.kill()
        self.client.close()

    def _live(self) -> set[str]:
        with connect(self.broker, retries=2) as redis:
            return {worker.name for worker in live_workers(redis)}


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait until it holds; gives the seconds it took, fails with `what` after `timeout_s`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started
