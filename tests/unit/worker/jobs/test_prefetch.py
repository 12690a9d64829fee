"""How many jobs a worker prefetches from the backlog."""

import socket
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection, Consumer, Queue

from imagefleet_shared.queue_depth import Backlog
from imagefleet_worker.jobs.kombu_patch import read_every_reply
from imagefleet_worker.jobs.prefetch import fair_share


@pytest.mark.parametrize(
    ("waiting", "prefetched", "workers", "share"),
    [
        (0, 0, 2, 1),
        (2, 0, 2, 1),
        (1, 1, 2, 1),
        (3, 0, 2, 2),
        (32, 0, 2, 8),
        (6, 0, 2, 3),
        (0, 6, 2, 3),
        (0, 0, 1, 8),
        (1, 0, 100, 1),
    ],
)
def test_the_fair_share_is_the_backlog_over_the_workers_rounded_up_within_the_slots(
    waiting: int, prefetched: int, workers: int, share: int
) -> None:
    backlog = {"generate": Backlog(waiting, workers)}
    assert fair_share(backlog, {"generate": prefetched}, slots=8) == share  # pyright: ignore[reportArgumentType] — a literal


def test_only_kinds_that_other_workers_serve_too_are_shared() -> None:
    backlog = {"generate": Backlog(4, 4), "upscale": Backlog(3, 1)}
    assert fair_share(backlog, {}, slots=8) == 4  # pyright: ignore[reportArgumentType] — likewise


def test_a_pending_reply_is_read_though_the_prefetch_count_fell(redis_url: str) -> None:
    """kombu left it unread until something was acknowledged, and no other worker could get it."""
    queue = Queue(uuid4().hex)
    with Connection(redis_url) as connection:
        channel: Any = connection.channel()
        read_every_reply(channel)
        channel.basic_qos(0, 2, False)
        received: list[object] = []
        with Consumer(
            channel, queues=[queue(channel)], callbacks=[lambda body, _: received.append(body)]
        ):
            publish = connection.Producer(serializer="json").publish
            publish("first", routing_key=queue.name)
            connection.drain_events(timeout=5)
            with suppress(socket.timeout):
                connection.drain_events(timeout=0.05)  # Asks for the next.
            assert channel._in_poll
            channel.basic_qos(0, 1, False)
            publish("second", routing_key=queue.name)
            connection.drain_events(timeout=5)
            assert received == ["first", "second"]
            publish("third", routing_key=queue.name)
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0.2)
            assert len(received) == 2, "it was not delivered and waits in the queue"
            assert channel._size(queue.name) == 1
