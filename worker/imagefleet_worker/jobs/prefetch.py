"""Controls how many jobs this worker prefetches: its fair share of the backlog.

A worker that filled all its slots would render a small backlog alone while others idle. Its fair
share is the backlog, its own prefetched jobs included, divided by the live workers that serve that
kind of job: a small backlog spreads, a large one is batched. A job counts as prefetched from its
lease until it is rendered; while its images are encoded and stored it takes a slot of its own.
"""

import logging
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import ceil
from threading import Condition, Thread
from typing import Any

from celery import bootsteps
from redis import Redis
from redis.exceptions import RedisError

from imagefleet_shared.field_types import JobKind
from imagefleet_shared.queue_depth import Backlog, read_backlog
from imagefleet_worker import metrics
from imagefleet_worker.jobs.kombu_patch import read_every_reply

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.25
"""How often the queues are read; also whenever a job is leased or rendered."""


def fair_share(
    backlog: Mapping[JobKind, Backlog], prefetched: Mapping[JobKind, int], slots: int
) -> int:
    """How many unrendered jobs a worker should have, from 1 to `slots`."""
    if all(queue.workers == 1 for queue in backlog.values()):
        return slots
    share = sum(
        (queue.waiting + prefetched.get(kind, 0)) / queue.workers for kind, queue in backlog.items()
    )
    return max(1, min(slots, ceil(share)))


class Slot:
    """A leased job, as the prefetch controller counts it."""

    def __init__(self, controller: "PrefetchController", kind: JobKind) -> None:
        self._controller = controller
        self._kind: JobKind = kind
        self._rendered = False

    def mark_rendered(self) -> None:
        """Count the job as rendered, so that another can be prefetched."""
        if not self._rendered:
            self._rendered = True
            self._controller.count(self._kind, prefetched=-1, rendered=1)

    def release(self) -> None:
        """Stop counting the job: it has ended, rendered or not."""
        self.mark_rendered()
        self._controller.count(self._kind, prefetched=0, rendered=-1)


class PrefetchController(Thread):
    """Sets the prefetch count of Celery's consumer, until closed."""

    def __init__(self, redis: Redis, worker: str, kinds: tuple[JobKind, ...], slots: int) -> None:
        super().__init__(name="prefetch", daemon=True)
        self._redis = redis
        self._worker = worker
        self._kinds = kinds
        self._slots = slots
        self._prefetched: Counter[JobKind] = Counter()
        self._rendered = 0
        self._consumer: Any = None
        self._dirty = False
        self._closed = False
        self._changed = Condition()

    @contextmanager
    def track(self, kind: JobKind) -> Generator[Slot]:
        """Count a leased job for as long as the context lasts."""
        self.count(kind, prefetched=1, rendered=0)
        slot = Slot(self, kind)
        try:
            yield slot
        finally:
            slot.release()

    def count(self, kind: JobKind, *, prefetched: int, rendered: int) -> None:
        """Add to the numbers of prefetched and of rendered jobs, and update the prefetch count."""
        with self._changed:
            self._prefetched[kind] += prefetched
            self._rendered += rendered
            self._dirty = True
            self._changed.notify()

    def consumer_step(self) -> type[bootsteps.StartStopStep]:
        """A bootstep that attaches this controller to Celery's consumer."""
        controller = self

        class PrefetchStep(bootsteps.StartStopStep):
            requires = ("celery.worker.consumer.tasks:Tasks",)

            def start(self, parent: Any) -> None:  # noqa: ANN401 — Celery is not typed
                read_every_reply(parent.task_consumer.channel)
                parent.qos.value = 1
                parent.qos.set(1)
                controller.attach(parent)

            def stop(self, parent: Any) -> None:  # noqa: ANN401
                controller.attach(None)

        return PrefetchStep

    def attach(self, consumer: Any) -> None:  # noqa: ANN401
        """Control this consumer, a new one after each lost connection; None: detach."""
        with self._changed:
            self._consumer = consumer
            self._dirty = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed, POLL_INTERVAL_S)
                if self._closed:
                    return
                self._dirty = False
                prefetched, rendered = Counter(self._prefetched), self._rendered
                consumer = self._consumer
            try:
                backlog = read_backlog(self._redis, self._kinds, self._worker)
            except RedisError as exc:
                logger.warning("backlog not read: %s", exc)
                continue
            share = fair_share(backlog, prefetched, self._slots)
            metrics.SHARE.set(share)
            if consumer is not None:
                _set_prefetch_count(consumer, min(self._slots, share + rendered))


def _set_prefetch_count(consumer: Any, messages: int) -> None:  # noqa: ANN401
    """Limit the consumer's unacknowledged messages; runs on its own thread, which this wakes."""

    def set_count() -> None:
        if consumer.qos is not None:
            consumer.qos.value = messages
            consumer.qos.update()

    consumer.call_soon(set_count)
