"""How many jobs this worker takes from the queue: its share of what waits.

A worker that took all its slots can hold would draw a small backlog alone while others idle. Its
share is what waits, and what it holds of it, over the live workers that take that kind of job: a
small backlog spreads, a large one batches. Held are jobs from their lease until they are drawn;
those whose pictures are encoded or stored take a slot beside the share.
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
"""The queues are looked at this often, and whenever a job is taken or drawn."""


def fair_share(backlog: Mapping[JobKind, Backlog], held: Mapping[JobKind, int], slots: int) -> int:
    """How many jobs a worker should hold before they are drawn, from 1 to `slots`."""
    if all(of_kind.workers == 1 for of_kind in backlog.values()):
        return slots
    share = sum(
        (of_kind.waiting + held.get(kind, 0)) / of_kind.workers for kind, of_kind in backlog.items()
    )
    return max(1, min(slots, ceil(share)))


class Slot:
    """A job between its lease and its end."""

    def __init__(self, controller: "PrefetchController", kind: JobKind) -> None:
        self._controller = controller
        self._kind: JobKind = kind
        self._rendered = False

    def mark_rendered(self) -> None:
        """The device is done with it: another may take its place."""
        if not self._rendered:
            self._rendered = True
            self._controller.count(self._kind, held=-1, rendered=1)

    def release(self) -> None:
        """It has ended, drawn or not."""
        self.mark_rendered()
        self._controller.count(self._kind, held=0, rendered=-1)


class PrefetchController(Thread):
    """Sets how many messages Celery's consumer may have unacknowledged, until closed."""

    def __init__(self, redis: Redis, worker: str, kinds: tuple[JobKind, ...], slots: int) -> None:
        super().__init__(name="intake", daemon=True)
        self._redis = redis
        self._worker = worker
        self._kinds = kinds
        self._slots = slots
        self._held: Counter[JobKind] = Counter()
        self._rendered = 0
        self._consumer: Any = None
        self._dirty = False
        self._closed = False
        self._changed = Condition()

    @contextmanager
    def hold(self, kind: JobKind) -> Generator[Slot]:
        """Count a job for as long as the context lasts."""
        self.count(kind, held=1, rendered=0)
        slot = Slot(self, kind)
        try:
            yield slot
        finally:
            slot.release()

    def count(self, kind: JobKind, *, held: int, rendered: int) -> None:
        """Add to the jobs held and to those drawn, and look anew."""
        with self._changed:
            self._held[kind] += held
            self._rendered += rendered
            self._dirty = True
            self._changed.notify()

    def consumer_step(self) -> type[bootsteps.StartStopStep]:
        """The part of Celery's consumer through which it is told."""
        controller = self

        class IntakeStep(bootsteps.StartStopStep):
            requires = ("celery.worker.consumer.tasks:Tasks",)

            def start(self, parent: Any) -> None:  # noqa: ANN401 — Celery is not typed
                read_every_reply(parent.task_consumer.channel)
                parent.qos.value = 1
                parent.qos.set(1)
                controller.attach(parent)

            def stop(self, parent: Any) -> None:  # noqa: ANN401
                controller.attach(None)

        return IntakeStep

    def attach(self, consumer: Any) -> None:  # noqa: ANN401
        """Serve this consumer, new after each lost connection; None: there is none for now."""
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
                held, drawn, consumer = Counter(self._held), self._rendered, self._consumer
            try:
                backlog = read_backlog(self._redis, self._kinds, self._worker)
            except RedisError as exc:
                logger.warning("the queues were not looked at: %s", exc)
                continue
            share = fair_share(backlog, held, self._slots)
            metrics.SHARE.set(share)
            if consumer is not None:
                _set_prefetch_count(consumer, min(self._slots, share + drawn))


def _set_prefetch_count(consumer: Any, messages: int) -> None:  # noqa: ANN401
    """Let it have so many messages unacknowledged; in its own thread, which this wakes."""

    def set_count() -> None:
        if consumer.qos is not None:
            consumer.qos.value = messages
            consumer.qos.update()

    consumer.call_soon(set_count)
