"""Starts a fleet that outlives its command, and records its processes so that it can be stopped."""

import fcntl
import logging
import shlex
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import BaseModel
from redis import Redis
from redis.exceptions import RedisError

from imagefleet_shared.presence import live_workers, withdraw
from localfleet.environment import child_environment
from localfleet.process import Process
from localfleet.record import ProcessRecord
from localfleet.servers import BUCKET, S3Keys, flower, redis_server, s3_server

REPOSITORY = Path(__file__).resolve().parents[1]

_WORKER_START_TIMEOUT_S = 300  # the first import of torch from a cold disk takes a minute
_WORKER_STOP_TIMEOUT_S = 75  # more than the worker's own drain_timeout_s
_SERVER_STOP_TIMEOUT_S = 15

logger = logging.getLogger(__name__)


class Fleet(BaseModel, frozen=True):
    """The processes of a fleet, in the order in which they started."""

    processes: tuple[ProcessRecord, ...] = ()
    flower_url: str = ""
    redis_url: str = ""
    s3_url: str = ""

    def with_process(self, process: Process) -> Self:
        """This fleet and one more process."""
        return self.model_copy(update={"processes": (*self.processes, process.record())})

    @property
    def alive(self) -> bool:
        """Whether every process runs."""
        return all(process.alive for process in self.processes)


class Home:
    """The folder of a local fleet's data, logs, keys and record; readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.record = self.path / "fleet.json"
        self.environment = self.path / "env"
        self.logs = self.path / "logs"
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Lock the fleet, so that no other command starts or stops it meanwhile."""
        with (self.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def fleet(self) -> Fleet | None:
        """The fleet as recorded; None if none was started, or it was stopped."""
        try:
            return Fleet.model_validate_json(self.record.read_text())
        except FileNotFoundError:
            return None

    def save(self, fleet: Fleet) -> None:
        """Record the fleet."""
        _write_private(self.record, fleet.model_dump_json(indent=2) + "\n")

    def keys(self) -> S3Keys:
        """The S3 keys of the data in this folder, created at the first call."""
        path = self.path / "s3-keys.json"
        if not path.exists():
            _write_private(path, S3Keys.random().model_dump_json() + "\n")
        return S3Keys.model_validate_json(path.read_text())


def _write_private(path: Path, text: str) -> None:
    """Replace a file atomically; only its owner can read it, at any moment."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


def start(home: Home) -> Fleet:
    """Start servers and a worker and wait until all of them answer.

    Each process is on record as soon as it runs, so that `stop` finds it whatever happens next.

    Raises:
        StartFailed: one of them did not come up; none is left running.
        ServerMissing: a server is not installed.
    """
    try:
        return _start(home)
    except BaseException:
        stop(home)
        raise


def _start(home: Home) -> Fleet:
    redis = redis_server(home.path / "redis", detached=True)
    s3 = s3_server(home.path / "s3", home.keys(), detached=True)
    dashboard = flower(redis.url, home.logs / "flower.log", detached=True)
    environment = {
        "IMAGEFLEET_REDIS_URL": redis.url,
        "IMAGEFLEET_STORAGE_URL": f"s3://{BUCKET}/demo",
        "IMAGEFLEET_S3_ENDPOINT_URL": s3.url,
        "IMAGEFLEET_MODELS_DIR": str(REPOSITORY / "worker/models"),
        "IMAGEFLEET_SPOOL_DIR": str(home.path / "spool"),
        **home.keys().environment(),
    }
    fleet = Fleet(flower_url=dashboard.url, redis_url=redis.url, s3_url=s3.url)
    worker = _worker(redis.url, environment, home)
    for stage in ([redis, s3], [dashboard, worker]):
        for process in stage:
            if process is worker:
                _withdraw_workers(redis.url)
            logger.info("starting %s, log in %s", process.name, process.log)
            process.launch()
            fleet = fleet.with_process(process)
            home.save(fleet)
        for process in stage:
            process.wait_ready()
    _write_private(home.environment, _exports(environment))
    return fleet


def _worker(redis_url: str, environment: Mapping[str, str], home: Home) -> Process:
    return Process(
        name="worker",
        arguments=[sys.executable, "-m", "imagefleet_worker"],
        url=redis_url,
        directory=home.path,
        log=home.logs / "worker.log",
        environment=child_environment(environment),
        ready=lambda _pid: _worker_announced(redis_url),
        detached=True,
        start_timeout_s=_WORKER_START_TIMEOUT_S,
        stop_timeout_s=_WORKER_STOP_TIMEOUT_S,
    )


def _worker_announced(redis_url: str) -> bool:
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        try:
            return bool(live_workers(redis))
        except RedisError:
            return False


def _withdraw_workers(redis_url: str) -> None:
    """Withdraw announcements that a killed worker left in the append-only file."""
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        for worker in live_workers(redis):
            withdraw(redis, worker.name)


def _exports(environment: Mapping[str, str]) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join(["# Source this to use the local fleet: . .local/env", *lines, ""])


def read_environment(home: Home) -> dict[str, str]:
    """The variables that an app needs to use the running fleet."""
    lines = [shlex.split(line, comments=True) for line in home.environment.read_text().splitlines()]
    return dict(words[1].split("=", 1) for words in lines if words)


def stop(home: Home) -> bool:
    """Stop the processes that still run, in reverse order of start; False if none ran."""
    fleet = home.fleet()
    if fleet is None:
        return False
    stopped = False
    for process in reversed(fleet.processes):
        if process.alive:
            logger.info("stopping %s", process.name)
            is_worker = process.name == "worker"
            process.stop(_WORKER_STOP_TIMEOUT_S if is_worker else _SERVER_STOP_TIMEOUT_S)
            stopped = True
    home.environment.unlink(missing_ok=True)
    home.record.unlink()
    return stopped
