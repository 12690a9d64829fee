"""The client on a real Redis without a live worker."""

import os
import re
import signal
import time
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from imagefleet_producer import (
    BrokerSettings,
    BrokerUnavailable,
    Client,
    GenerateRequest,
    InvalidRequest,
    JobStatus,
    JobTimeout,
    StorageSettings,
)
from imagefleet_producer.cli import app
from localfleet.process import Process

REQUEST = GenerateRequest(prompt="a fox")
TIMEOUT_S = 30


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def client(redis_url: str, tmp_path: Path) -> Iterator[Client]:
    broker = BrokerSettings(redis_url=redis_url, socket_timeout_s=0.5)
    with Client(broker, StorageSettings(storage_url=(tmp_path / "store").as_uri())) as client:
        yield client


@pytest.fixture
def full_redis(redis: Redis) -> Iterator[None]:
    """A Redis that has no memory left."""
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


def test_a_time_limit_is_enforced_without_any_worker(client: Client) -> None:
    """An app that waited for the result waited for ever."""
    job = client.generate(REQUEST, time_limit_s=0.1)
    with pytest.raises(JobTimeout, match=r"0\.1 s"):
        job.result(TIMEOUT_S)


def test_a_time_limit_is_enforced_by_a_single_status_call(client: Client) -> None:
    job = client.generate(REQUEST, time_limit_s=0.001)
    time.sleep(0.01)
    assert job.status() is JobStatus.FAILED


@pytest.mark.parametrize("limit_s", [0, -3, nan, inf])
def test_an_invalid_time_limit_is_refused(client: Client, redis: Redis, limit_s: float) -> None:
    """NaN meant no limit, and a job without any time was enqueued."""
    with pytest.raises(InvalidRequest, match=f"above 0, given {limit_s}"):
        client.generate(REQUEST, time_limit_s=limit_s)
    assert redis.dbsize() == 0


@pytest.mark.usefixtures("full_redis")
def test_a_full_redis_is_unavailable(client: Client) -> None:
    """Apps got redis-py's own errors, which are not documented."""
    with pytest.raises(BrokerUnavailable, match=r"refuses: .*maxmemory"):
        client.generate(REQUEST)
    with pytest.raises(BrokerUnavailable, match=r"refuses: .*maxmemory"):
        client.job("job").preview()


@pytest.mark.usefixtures("full_redis")
def test_a_full_redis_exits_the_command_line_with_1(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEFLEET_REDIS_URL", redis_url)
    monkeypatch.setenv("IMAGEFLEET_STORAGE_URL", (tmp_path / "store").as_uri())
    result = CliRunner().invoke(app, ["generate", "a fox", "--no-wait"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("BrokerUnavailable: Redis cannot be reached or refuses")


def test_a_job_whose_message_redis_refuses_is_enqueued(client: Client, redis: Redis) -> None:
    """It is not an error: the reconciler publishes the missing message."""
    redis.execute_command("ACL", "SETUSER", "default", "-lpush")
    try:
        job = client.generate(REQUEST)
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+@all")
    assert job.status() is JobStatus.QUEUED


def test_a_job_that_was_enqueued_without_a_reply_is_found_by_the_id_in_the_error(
    client: Client, redis_server: Process
) -> None:
    """The error said that nothing was enqueued; the job ran, and nobody could cancel it."""
    client.generate(REQUEST)  # from here on Redis knows the script, and the connection is open
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable) as caught:
            client.generate(REQUEST)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    found = re.search(r"whether job (\w+) was enqueued is not known", str(caught.value))
    assert found is not None
    job = client.job(found[1])
    assert job.cancel() is JobStatus.QUEUED
    assert job.status() is JobStatus.CANCELED
