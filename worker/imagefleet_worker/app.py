"""One worker process: settings, store, engine, Celery, from start to stop."""

import argparse
import logging
import socket
from contextlib import suppress
from threading import Event, Thread, Timer
from typing import get_args

import torch
from celery import Celery
from celery.signals import worker_shutting_down
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from imagefleet_shared.broker import connect, make_celery, publish
from imagefleet_shared.errors import ImagefleetError
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.presence import ANNOUNCE_S, ModelInfo, WorkerInfo, announce, withdraw
from imagefleet_shared.routing import QUEUES
from imagefleet_shared.settings import BrokerSettings, StorageSettings
from imagefleet_shared.storage import ObjectStore, open_store
from imagefleet_worker import metrics
from imagefleet_worker.catalog.listing import NamedKind
from imagefleet_worker.catalog.remote import open_remote
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.device.options import card_bytes, options_on
from imagefleet_worker.device.presets import pipeline_cache_bytes
from imagefleet_worker.diffusion.postprocess import Finisher
from imagefleet_worker.diffusion.renderer import Studio
from imagefleet_worker.engine.batch_limit import HOST_MEMORY, CudaMemory
from imagefleet_worker.engine.engine import Engine, Renderer
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.heartbeat import Heartbeat, die_with_parent
from imagefleet_worker.jobs.delivery import Delivery
from imagefleet_worker.jobs.encode import Spool
from imagefleet_worker.jobs.leases import LeaseKeeper
from imagefleet_worker.jobs.prefetch import Intake
from imagefleet_worker.jobs.tasks import register
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.upscale.cache import UpscalerCache
from imagefleet_worker.upscale.enlarge import Enlarger
from imagefleet_worker.warm_up import warm_up

log = logging.getLogger(__name__)

RECONCILE_S = 1
_PATIENCE = 120
"""Tries of a Redis call, one a second at last: a worker sits out an outage of two minutes."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def make_studio(
    settings: WorkerSettings,
    models: ModelStore,
    device: torch.device,
    resolver: Resolver | None = None,
) -> Studio:
    """The real renderer on a device; given a resolver, warmed up where there is need."""
    auto = torch.float32 if device.type == "cpu" else torch.float16
    dtype = _DTYPES.get(settings.dtype, auto)
    options = options_on(device, dtype, settings)
    pipelines = PipelineCache(
        models,
        device=device,
        dtype=dtype,
        options=options,
        budget_bytes=pipeline_cache_bytes(
            settings, card_bytes(device) if options.offload == "none" else None
        ),
        originals_bytes=int(settings.originals_gb * 1e9),
        copies_bytes=int(settings.merged_cache_gb * 1e9),
        verify_every=settings.verify_every,
        host_bytes=int(settings.host_cache_gb * 1e9),
    )
    upscalers = UpscalerCache(
        lambda name: models.fetched("upscaler", name),
        device,
        dtype,
        budget_bytes=int(settings.upscaler_cache_gb * 1e9),
        compiled=settings.upscaler_compile,
    )
    faces = FaceRestorer(FaceNetworks(device, int(settings.face_cache_gb * 1e9)))
    enlarger = Enlarger(upscalers, settings.max_output_pixels)
    studio = Studio(settings, pipelines, Finisher(enlarger, faces))
    if resolver and (options.compile or options.cuda_graphs):
        warm_up(studio, resolver, settings)
    return studio


class Worker:
    """Serves jobs until SIGTERM.

    Args:
        name: of this worker in the fleet.
        settings: what it serves.
        device: of its engine.
        beat_fd: pipe to the parent; None without one.
        renderer: what draws; None: the real thing.
        store: where pictures go; None: the one that the settings name.
    """

    def __init__(
        self,
        name: str,
        settings: WorkerSettings,
        device: torch.device,
        beat_fd: int | None,
        renderer: Renderer | None = None,
        store: ObjectStore | None = None,
    ) -> None:
        broker = BrokerSettings()
        store = store or open_store(StorageSettings())
        self._name, self._settings, self._device = name, settings, device
        self._redis: Redis = connect(broker, retries=_PATIENCE)
        self._celery: Celery = make_celery(broker)
        self._ledger = Ledger(
            self._redis, record_ttl_s=broker.record_ttl_s, lease_s=settings.lease_s
        )
        self._models = ModelStore(settings.models_dir, open_remote(settings, StorageSettings()))
        self._resolver = Resolver(settings, self._models, store)
        self._keeper = LeaseKeeper(self._ledger)
        self._engine = Engine(
            lambda: renderer or make_studio(settings, self._models, device, self._resolver),
            Heartbeat(beat_fd),
            settings.max_batch_pixels,
            settings.gather_ms / 1000,
            CudaMemory(device) if device.type == "cuda" else HOST_MEMORY,
        )
        self._intake = Intake(self._redis, name, settings.queues, settings.slots)
        self._stopping = Event()
        delivery = Delivery(
            worker=name,
            celery=self._celery,
            ledger=self._ledger,
            keeper=self._keeper,
            models=self._models,
            resolver=self._resolver,
            engine=self._engine,
            intake=self._intake,
            store=store,
            spool=Spool(settings.spool_dir),
            png_level=settings.png_level,
        )
        register(self._celery, settings.queues, delivery)
        self._celery.steps["consumer"].add(self._intake.step())

    def run(self) -> None:
        """Serve until SIGTERM, then finish what runs, or hand it back."""
        if self._settings.metrics_port is not None:
            metrics.serve(self._settings.metrics_port)
        self._engine.start()
        self._engine.ready.result()
        self._keeper.start()
        self._intake.start()
        announcing = Thread(target=self._announce, name="announce", daemon=True)
        announcing.start()
        Thread(target=self._hash_adapters, name="hash", daemon=True).start()
        Thread(target=self._reconcile, name="reconcile", daemon=True).start()
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
            self._stopping.set()
            self._intake.close()
            self._keeper.close()
            announcing.join()

    def _drain(self, **_: object) -> None:
        log.info("draining: running jobs have %g s to finish", self._settings.drain_timeout_s)
        self._stopping.set()
        timer = Timer(self._settings.drain_timeout_s, self._keeper.hand_back_all)
        timer.daemon = True
        timer.start()

    def _announce(self) -> None:
        while not self._stopping.is_set():
            try:
                announce(self._redis, self._info())
            except (RedisError, ImagefleetError) as exc:
                log.warning("not announced: %s", exc)
            self._stopping.wait(ANNOUNCE_S)
        # Before the jobs held have ended: the others' shares of what waits grow at once.
        with suppress(RedisError):
            withdraw(self._redis, self._name)

    def _info(self) -> WorkerInfo:
        files = [file for kind in get_args(NamedKind) for file in self._models.listed(kind)]
        return WorkerInfo(
            name=self._name,
            host=socket.gethostname(),
            device=_describe(self._device),
            slots=self._settings.slots,
            kinds=self._settings.queues,
            default_checkpoint=self._resolver.default_checkpoint(),
            models=tuple(
                ModelInfo(
                    name=file.name,
                    kind=file.kind,
                    family=file.family,
                    forms=file.facts.forms if file.facts else (),
                    trigger_words=file.facts.trigger_words if file.facts else (),
                    size_bytes=file.size_bytes,
                    sha256=self._models.known_sha256(file),
                )
                for file in files
            ),
        )

    def _hash_adapters(self) -> None:
        """Read local adapters for `_info`; what is large or far is hashed once somebody uses it."""
        while not self._stopping.is_set():
            try:
                for file in (*self._models.listed("lora"), *self._models.listed("embedding")):
                    if file.remote is None:
                        self._models.sha256(file)
            except ImagefleetError as exc:
                log.warning("not all adapters are hashed: %s", exc)
            self._stopping.wait(ANNOUNCE_S)

    def _reconcile(self) -> None:
        while not self._stopping.wait(RECONCILE_S):
            try:
                if self._ledger.lock_reconciler(self._name, 3 * RECONCILE_S):
                    for wakeup in self._ledger.reconcile():
                        log.info("job %s waits without a message, publishing again", wakeup.job_id)
                        publish(self._celery, wakeup)
            except (RedisError, OperationalError) as exc:
                log.warning("not reconciled: %s", exc)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def main() -> None:
    """Run one worker process; the supervisor starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--beat-fd", type=int)
    arguments = parser.parse_args()
    die_with_parent()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    device = torch.device(arguments.device)
    Worker(arguments.name, WorkerSettings(), device, arguments.beat_fd).run()


if __name__ == "__main__":
    main()
