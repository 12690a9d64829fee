"""A job on a worker's task thread: lease, resolve, render, store, publish."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from time import monotonic
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from imagefleet_shared.broker import publish
from imagefleet_shared.errors import ImagefleetError, WorkerFailure
from imagefleet_shared.ledger import Ledger
from imagefleet_shared.records import JobRecord, Lease
from imagefleet_shared.results import JobResult, Timings
from imagefleet_shared.status import Stage
from imagefleet_shared.storage_keys import job_folder
from imagefleet_worker import metrics
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.engine.engine import Engine
from imagefleet_worker.jobs.cancellation import LeaseLost, Requeue
from imagefleet_worker.jobs.execution import Encode, JobOutput, run_job
from imagefleet_worker.jobs.leases import LeasedJob, LeaseKeeper
from imagefleet_worker.jobs.prefetch import PrefetchController, Slot
from imagefleet_worker.jobs.spool import Spool
from imagefleet_worker.jobs.upload_results import ResultUploader, retry_while_unavailable
from imagefleet_worker.requests.resolved import ResolvedGenerate, UpscaleJob

logger = logging.getLogger(__name__)


class JobResolver(Protocol):
    """Resolves jobs for the engine."""

    def on_disk(
        self, job: JobRecord, report: Callable[[Stage, int, int], None]
    ) -> AbstractContextManager[ResolvedGenerate | UpscaleJob]:
        """The resolved job, with all its models on local disk while the context lasts.

        Args:
            job: to resolve.
            report: called with the progress of downloads; what it raises stops them.

        Raises:
            ImagefleetError: the request cannot be fulfilled, or not now.
        """
        ...


class Delivery:
    """Takes jobs from lease to result; `deliver` runs on many threads at once."""

    def __init__(
        self,
        *,
        worker: str,
        celery: Celery,
        ledger: Ledger,
        keeper: LeaseKeeper,
        resolver: JobResolver,
        engine: Engine,
        prefetch: PrefetchController,
        uploader: ResultUploader,
        spool: Spool,
        encode: Encode,
        read_ahead: Callable[[Iterable[ModelFile]], None],
    ) -> None:
        self._worker = worker
        self._celery = celery
        self._ledger = ledger
        self._keeper = keeper
        self._resolver = resolver
        self._engine = engine
        self._prefetch = prefetch
        self._uploader = uploader
        self._spool = spool
        self._encode = encode
        self._read_ahead = read_ahead

    def deliver(self, job_id: str) -> str:
        """Run a job, if it is still queued.

        Returns:
            The outcome in a few words, without the prompt.

        Raises:
            ImagefleetError: the job failed; the ledger has the same error.
        """
        lease = self._ledger.lease(job_id, self._worker)
        if lease is None:
            return "nothing to do: leased by another worker, or ended"
        try:
            with (
                self._keeper.keep_renewed(lease) as leased,
                self._prefetch.track(lease.job.kind) as slot,
            ):
                result = self._run(leased, slot)
        except LeaseLost:
            return "lost: another worker has the job"
        except Requeue:
            return self._requeue(lease)
        except ImagefleetError as exc:
            self._end(lease, exc)
            raise
        except RedisError:  # The job is not at fault; it is reconciled when its lease expires.
            raise
        except Exception as exc:
            failure = WorkerFailure(f"{type(exc).__name__}: {exc}")
            self._end(lease, failure)
            raise failure from exc
        # The manifest is published: no attempt needs the spooled images, whoever has the lease.
        self._spool.delete(job_id)
        return self._succeed(lease, result)

    def _run(self, leased: LeasedJob, slot: Slot) -> JobResult:
        job, leased_s = leased.job, monotonic()
        folder = job_folder(job.id, job.submitted_s)
        if job.progress.attempt > 1:
            # An earlier attempt may have published its result and died before updating the ledger.
            published = self._uploader.find_published(leased, folder)
            if published is not None:
                return published
        with self._engine.announce() as reservation, ExitStack() as models:
            leased.report("load", 0, 0)
            resolved = retry_while_unavailable(
                leased, lambda: models.enter_context(self._resolver.on_disk(job, leased.report))
            )
            resolved_s = monotonic()
            spooled = self._spool.load(job.id)
            if spooled:
                output = JobOutput.from_spool(spooled)
            else:
                render = partial(
                    self._engine.render,
                    priority=job.priority,
                    # Otherwise a job that crashes workers would take its whole batch with it.
                    alone=job.faults > 0,
                    reservation=reservation,
                    while_waiting=partial(self._read_ahead, resolved.files),
                )
                leased.report("queued", 0, 0)
                output = run_job(resolved, render, leased, self._encode, slot.mark_rendered)
        images = self._uploader.upload(leased, folder, output.images)
        result = JobResult(
            job_id=job.id,
            request=resolved.request,
            images=tuple(images),
            timings=Timings(
                queue_s=max(0.0, job.leased_s - job.submitted_s),
                engine_wait_s=resolved_s - leased_s + output.waited_s,
                stages_s=output.stages_s,
                batch_jobs=output.batch_jobs,
                store_s=monotonic() - output.rendered_s,
            ),
            worker=self._worker,
            attempt=job.progress.attempt,
        )
        return self._uploader.publish_manifest(leased, folder, result)

    def _succeed(self, lease: Lease, result: JobResult) -> str:
        if not self._ledger.succeed(lease, result):
            return "lost: another worker has the job"
        metrics.JOBS.labels(lease.job.kind, "succeeded").inc()
        count = len(result.images)
        return f"succeeded: {count} image{'s' if count > 1 else ''}"

    def _end(self, lease: Lease, error: ImagefleetError) -> None:
        if self._ledger.fail(lease, error):
            metrics.JOBS.labels(lease.job.kind, type(error).__name__).inc()
            self._spool.delete(lease.job.id)
        else:
            # Another worker has the job; should it come back here, its spooled images are needed.
            logger.warning("job %s failed after its lease was lost: %s", lease.job.id, error)

    def _requeue(self, lease: Lease) -> str:
        wakeup = self._ledger.release(lease)
        if wakeup:
            try:
                publish(self._celery, wakeup)
            except OperationalError:
                logger.warning("job %s is requeued, its message was not published", lease.job.id)
        return "requeued"
