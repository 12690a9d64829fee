"""The life of a job on a worker's task thread, around the engine: lease, resolve, store, finish."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from time import monotonic, sleep
from typing import TypeVar

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from imagefleet_shared.broker import publish
from imagefleet_shared.errors import ImagefleetError, StorageUnavailable, WorkerFailure
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.records import Lease
from imagefleet_shared.results import ImageResult, JobResult, Timings
from imagefleet_shared.storage import ObjectStore
from imagefleet_shared.storage_keys import CONTENT_TYPES, image_key, job_folder, manifest_key
from imagefleet_worker import metrics
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.jobs.encode import Picture, Spool, encode_pictures
from imagefleet_worker.jobs.execution import Made, make
from imagefleet_worker.jobs.leases import HandBack, HeldJob, LeaseKeeper, LeaseLost
from imagefleet_worker.jobs.prefetch import Holding, Intake
from imagefleet_worker.requests.resolve import Resolver

log = logging.getLogger(__name__)

T = TypeVar("T")

STORE_RETRY_S = 1
STORE_PATIENCE_S = 600
"""How long an object store may be away before the jobs that need it fail."""


class Delivery:
    """Takes jobs from lease to result; `deliver` runs on many threads at once."""

    def __init__(
        self,
        *,
        worker: str,
        celery: Celery,
        ledger: Ledger,
        keeper: LeaseKeeper,
        models: ModelStore,
        resolver: Resolver,
        engine: Engine,
        intake: Intake,
        store: ObjectStore,
        spool: Spool,
        png_level: int,
    ) -> None:
        self._worker = worker
        self._celery = celery
        self._ledger = ledger
        self._keeper = keeper
        self._resolver = resolver
        self._engine = engine
        self._intake = intake
        self._store = store
        self._spool = spool
        self._models = models
        self._encode = partial(encode_pictures, models=models, png_level=png_level)

    def deliver(self, job_id: str) -> str:
        """Do a job, if it is still to be done.

        Returns:
            What became of it, in a few words without the prompt.

        Raises:
            ImagefleetError: the job failed; the ledger has the same error.
        """
        lease = self._ledger.lease(job_id, self._worker)
        if lease is None:
            return "nothing to do: held by another worker, or ended"
        try:
            with self._keeper.hold(lease) as held, self._intake.hold(lease.job.kind) as holding:
                result = self._do(held, holding)
        except LeaseLost:
            return "lost: another worker has the job"
        except HandBack:
            return self._hand_back(lease)
        except ImagefleetError as exc:
            self._end(lease, exc)
            raise
        except RedisError:  # The job is not at fault, and will be found by the end of its lease.
            raise
        except Exception as exc:
            failure = WorkerFailure(f"{type(exc).__name__}: {exc}")
            self._end(lease, failure)
            raise failure from exc
        # The manifest is published: no attempt needs the kept pictures, whoever has the lease.
        self._spool.drop(job_id)
        return self._succeed(lease, result)

    def _do(self, held: HeldJob, holding: Holding) -> JobResult:
        job, leased = held.job, monotonic()
        folder = job_folder(job.id, job.submitted_s)
        if job.progress.attempt > 1:
            # An earlier attempt may have come to its end and died before it told the ledger.
            finished = self._patiently(held, lambda: self._store.find(manifest_key(folder)))
            if finished is not None:
                return JobResult.model_validate_json(finished)
        with self._engine.expected() as ticket, ExitStack() as models:
            held.tell("load", 0, 0)
            resolved = self._patiently(
                held, lambda: models.enter_context(self._resolver.on_disk(job, held.tell))
            )
            ready = monotonic()
            kept = self._spool.find(job.id)
            if kept:
                made = Made.before(kept)
            else:
                render = partial(
                    self._engine.render,
                    priority=job.priority,
                    # Else whoever is drawn beside a job that takes workers down would fall with it.
                    alone=job.faults > 0,
                    ticket=ticket,
                    meanwhile=partial(self._models.ahead.read, resolved.files),
                )
                held.tell("queued", 0, 0)
                made = make(resolved, render, held, self._encode, holding.drawn)
        images = self._store_pictures(held, folder, made.pictures)
        result = JobResult(
            job_id=job.id,
            request=resolved.request,
            images=tuple(images),
            timings=Timings(
                queue_s=max(0.0, job.leased_s - job.submitted_s),
                engine_wait_s=ready - leased + made.waited_s,
                stages_s=made.stages_s,
                batch_jobs=made.batch_jobs,
                store_s=monotonic() - made.drawn_s,
            ),
            worker=self._worker,
            attempt=job.progress.attempt,
        )
        return self._publish_manifest(held, folder, result)

    def _store_pictures(
        self, held: HeldJob, folder: str, pictures: Sequence[Picture]
    ) -> list[ImageResult]:
        held.confirm()
        try:
            images = [self._store_picture(folder, *one) for one in enumerate(pictures)]
        except StorageUnavailable:
            # The device is not asked twice for what waits here, not even after a restart.
            self._spool.keep(held.job.id, pictures)
            images = self._patiently(
                held, lambda: [self._store_picture(folder, *one) for one in enumerate(pictures)]
            )
        return images

    def _store_picture(self, folder: str, index: int, picture: Picture) -> ImageResult:
        key = image_key(folder, index, picture.format)
        stored = self._store.put_new(key, picture.content, CONTENT_TYPES[picture.format])
        return ImageResult(
            key=stored.key,
            url=stored.url,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            width=picture.width,
            height=picture.height,
            seed=picture.seed,
            format=picture.format,
        )

    def _publish_manifest(self, held: HeldJob, folder: str, result: JobResult) -> JobResult:
        """Write the manifest, unless another attempt was first: then that one's result counts."""
        key, content = manifest_key(folder), result.model_dump_json().encode()

        def publish_once() -> JobResult:
            stored = self._store.put_new(key, content, "application/json")
            if stored.sha256 == sha256(content).hexdigest():
                return result
            return JobResult.model_validate_json(self._store.find(key) or b"")

        held.confirm()
        return self._patiently(held, publish_once)

    def _patiently(self, held: HeldJob, call: Callable[[], T]) -> T:
        """Try until the store answers, the job must stop, or patience ends."""
        give_up = monotonic() + STORE_PATIENCE_S
        while True:
            try:
                return call()
            except StorageUnavailable as exc:
                if monotonic() > give_up:
                    raise
                log.warning("job %s waits for the store: %s", held.job.id, exc)
            held.check()
            sleep(STORE_RETRY_S)

    def _succeed(self, lease: Lease, result: JobResult) -> str:
        if not self._ledger.succeed(lease, result):
            return "lost: another worker has the job"
        metrics.JOBS.labels(lease.job.kind, "succeeded").inc()
        count = len(result.images)
        return f"succeeded: {count} picture{'s' if count > 1 else ''}"

    def _end(self, lease: Lease, error: ImagefleetError) -> None:
        if self._ledger.fail(lease, error):
            metrics.JOBS.labels(lease.job.kind, type(error).__name__).inc()
            self._spool.drop(lease.job.id)
        else:
            # Others have the job; should it come back here, its pictures are needed.
            log.warning("job %s failed after its lease was lost: %s", lease.job.id, error)

    def _hand_back(self, lease: Lease) -> str:
        wakeup = self._ledger.release(lease)
        if wakeup:
            try:
                publish(self._celery, wakeup)
            except OperationalError:
                log.warning("job %s is handed back, its message was not published", lease.job.id)
        return "handed back"
