"""`imagefleet-worker --healthy`, the health check for orchestrators."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from redis import Redis

from imagefleet_shared.broker import connect
from imagefleet_shared.presence import WorkerInfo, announce
from imagefleet_shared.settings import BrokerSettings
from localfleet.environment import child_environment

HOST = socket.gethostname()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with connect(BrokerSettings(redis_url=redis_url), retries=0) as client:
        yield client


def healthy(redis_url: str) -> bool:
    command = [sys.executable, "-m", "imagefleet_worker", "--healthy"]
    environment = child_environment({"IMAGEFLEET_REDIS_URL": redis_url})
    return subprocess.run(command, env=environment, check=False).returncode == 0


def worker_info(host: str) -> WorkerInfo:
    return WorkerInfo(
        name=f"{host}-cpu-77",
        host=host,
        device="cpu",
        slots=1,
        kinds=("generate",),
        default_checkpoint=None,
        models=(),
    )


def test_a_host_is_healthy_while_its_own_worker_is_live(redis: Redis, redis_url: str) -> None:
    """Another host whose name begins with ours made us look healthy."""
    announce(redis, worker_info(f"{HOST}-2"))
    assert not healthy(redis_url)
    announce(redis, worker_info(HOST))
    assert healthy(redis_url)
