"""A worker from start to stop: Celery, the engine and the other threads. Does not import torch."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Timer

from celery.signals import worker_shutting_down

from imagefleet_shared.broker import connect, make_celery
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.presence import WorkerInfo
from imagefleet_shared.routing import QUEUES
from imagefleet_shared.settings import BrokerSettings
from imagefleet_shared.storage import ObjectStore
from imagefleet_worker import metrics
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.engine.batch_limit import UNMEASURED_MEMORY, DeviceMemory
from imagefleet_worker.engine.engine import Engine, Renderer
from imagefleet_worker.heartbeat import Heartbeat
from imagefleet_worker.jobs.announce import Announcer
from imagefleet_worker.jobs.delivery import Delivery, JobResolver
from imagefleet_worker.jobs.encode import encode_images
from imagefleet_worker.jobs.leases import LeaseKeeper
from imagefleet_worker.jobs.prefetch import PrefetchController
from imagefleet_worker.jobs.reconcile import Reconciler
from imagefleet_worker.jobs.spool import Spool
from imagefleet_worker.jobs.tasks import register
from imagefleet_worker.jobs.upload_results import ResultUploader
from imagefleet_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_REDIS_RETRIES = 120
"""Retries of a Redis call, at most a second apart: a worker survives a two-minute outage."""


@dataclass(frozen=True, kw_only=True)
class WorkerParts:
    """The parts of a worker that tests replace; `build_parts` builds the real ones."""

    device: str
    """As it is announced: `cpu`, `cuda:0 (NVIDIA H200)`."""
    models: ModelStore
    resolver: JobResolver
    default_checkpoint: Callable[[], str | None]
    """Checkpoint of requests that name none, as of now; None: they must name one."""
    make_renderer: Callable[[], Renderer]
    """Called on the engine's thread."""
    memory: DeviceMemory = UNMEASURED_MEMORY


class Worker:
    """Serves jobs until SIGTERM.

    Args:
        name: of this worker in the fleet.
        settings: what it serves.
        parts: its models, resolver and renderer.
        store: where images are stored.
        beat_fd: pipe to the parent process for heartbeats; None: no parent.
    """

    def __init__(
        self,
        name: str,
        settings: WorkerSettings,
        parts: WorkerParts,
        store: ObjectStore,
        beat_fd: int | None,
    ) -> None:
        broker = BrokerSettings()
        redis = connect(broker, retries=_REDIS_RETRIES)
        ledger = Ledger(redis, record_ttl_s=broker.record_ttl_s, lease_s=settings.lease_s)
        self._name, self._settings = name, settings
        self._celery = make_celery(broker)
        self._keeper = LeaseKeeper(ledger)
        self._engine = Engine(
            parts.make_renderer,
            Heartbeat(beat_fd),
            settings.max_batch_pixels,
            settings.gather_ms / 1000,
            parts.memory,
        )
        self._prefetch = PrefetchController(redis, name, settings.queues, settings.slots)
        self._announcer = Announcer(
            redis,
            WorkerInfo(
                name=name,
                host=socket.gethostname(),
                device=parts.device,
                slots=settings.slots,
                kinds=settings.queues,
                default_checkpoint=None,
                models=(),
            ),
            parts.models,
            parts.default_checkpoint,
        )
        self._reconciler = Reconciler(ledger, self._celery, name)
        spool = Spool(settings.spool_dir)
        delivery = Delivery(
            worker=name,
            celery=self._celery,
            ledger=ledger,
            keeper=self._keeper,
            resolver=parts.resolver,
            engine=self._engine,
            prefetch=self._prefetch,
            uploader=ResultUploader(store, spool),
            spool=spool,
            encode=partial(
                encode_images, sha256_of=parts.models.sha256, png_level=settings.png_level
            ),
            read_ahead=parts.models.read_ahead.read,
        )
        register(self._celery, settings.queues, delivery)
        self._celery.steps["consumer"].add(self._prefetch.consumer_step())

    def run(self) -> None:
        """Serve until SIGTERM, then finish running jobs, or requeue them."""
        if self._settings.metrics_port is not None:
            metrics.serve(self._settings.metrics_port)
        self._engine.start()
        self._engine.ready.result()
        for thread in (self._keeper, self._prefetch, self._announcer, self._reconciler):
            thread.start()
        worker_shutting_down.connect(self._drain, weak=False)
        try:
            self._celery.Worker(
                hostname=self._name,
                pool="threads",
                concurrency=self._settings.slots,
                queues=[QUEUES[kind] for kind in self._settings.queues],
                loglevel="INFO",
            ).start()
        finally:
            for thread in (self._announcer, self._reconciler, self._prefetch, self._keeper):
                thread.close()
            self._announcer.join()

    def _drain(self, **_: object) -> None:
        logger.info("draining: running jobs have %g s to finish", self._settings.drain_timeout_s)
        self._announcer.close()
        self._reconciler.close()
        timer = Timer(self._settings.drain_timeout_s, self._keeper.requeue_all)
        timer.daemon = True
        timer.start()
