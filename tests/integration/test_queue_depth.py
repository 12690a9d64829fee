"""The backlog, and the number of workers that serve it."""

import pytest
from redis import Redis

from imagefleet_shared.broker import connect, make_celery, publish
from imagefleet_shared.field_types import JobKind
from imagefleet_shared.presence import WorkerInfo, announce, withdraw
from imagefleet_shared.queue_depth import Backlog, read_backlog
from imagefleet_shared.records import Wakeup
from imagefleet_shared.settings import BrokerSettings
from tests.fleet import wait_for


@pytest.fixture
def broker(redis_url: str) -> BrokerSettings:
    return BrokerSettings(redis_url=redis_url)


@pytest.fixture
def redis(broker: BrokerSettings) -> Redis:
    redis = connect(broker, retries=2)
    # A worker killed by an earlier test keeps its sockets until its memory is freed, and a message
    # received by its last BRPOP is lost.
    wait_for(lambda: redis.info("clients")["blocked_clients"] == 0, 10, "no other consumer")
    return redis


def info(name: str, *kinds: JobKind) -> WorkerInfo:
    return WorkerInfo(
        name=name,
        host="here",
        device="cpu",
        slots=8,
        kinds=kinds,
        default_checkpoint=None,
        models=(),
    )


def test_workers_are_counted_by_kind_and_the_calling_one_always_counts(
    redis: Redis,
) -> None:
    announce(redis, info("one", "generate", "upscale"))
    announce(redis, info("two", "generate"))
    expected = {"generate": Backlog(0, 2), "upscale": Backlog(0, 1)}
    assert read_backlog(redis, ["generate", "upscale"], "one") == expected
    expected = {"generate": Backlog(0, 3), "upscale": Backlog(0, 2)}
    assert read_backlog(redis, ["generate", "upscale"], "three") == expected
    withdraw(redis, "two")
    assert read_backlog(redis, ["generate"], "one") == {"generate": Backlog(0, 1)}


def test_messages_of_every_priority_are_counted(redis: Redis, broker: BrokerSettings) -> None:
    app = make_celery(broker)
    for number, priority in enumerate(("high", "normal", "low", "low")):
        publish(app, Wakeup(f"job-{number}", "generate", priority, number))
    publish(app, Wakeup("other", "upscale", "normal", 9))
    assert read_backlog(redis, ["generate", "upscale"], "one") == {
        "generate": Backlog(4, 1),
        "upscale": Backlog(1, 1),
    }
