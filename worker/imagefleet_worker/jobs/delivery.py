"""The life of a job on a worker's task thread, around the engine: lease, resolve, store, finish."""

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
from imagefleet_worker.jobs.execution import Encode, JobOutput, run_job
from imagefleet_worker.jobs.leases import LeasedJob, LeaseKeeper, LeaseLost, Requeue
from imagefleet_worker.jobs.prefetch import PrefetchController, Slot
from imagefleet_worker.jobs.publish import Publisher, retry_while_unavailable
from imagefleet_worker.jobs.spool import Spool
from imagefleet_worker.requests.resolved import ResolvedGenerate, UpscaleJob

logger = logging.getLogger(__name__)


class JobResolver(Protocol):
    """Makes jobs ready for the engine."""

    def on_disk(
        self, job: JobRecord, report: Callable[[Stage, int, int], None]
    ) -> AbstractContextManager[ResolvedGenerate | UpscaleJob]:
        """A job made ready, with all its models on local disk until the context ends.

        Args:
            job: to be made ready.
            tell: hears how far models are fetched; what it raises ends that.

        Raises:
            ImagefleetError: what the job asks for cannot be done, or not now.
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
        publisher: Publisher,
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
        self._publisher = publisher
        self._spool = spool
        self._encode = encode
        self._read_ahead = read_ahead

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
            with self._keeper.hold(lease) as leased, self._prefetch.hold(lease.job.kind) as slot:
                result = self._run(leased, slot)
        except LeaseLost:
            return "lost: another worker has the job"
        except Requeue:
            return self._requeue(lease)
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
        self._spool.delete(job_id)
        return self._succeed(lease, result)

    def _run(self, leased: LeasedJob, slot: Slot) -> JobResult:
        job, leased_s = leased.job, monotonic()
        folder = job_folder(job.id, job.submitted_s)
        if job.progress.attempt > 1:
            # An earlier attempt may have come to its end and died before it told the ledger.
            published = self._publisher.find(leased, folder)
            if published is not None:
                return published
        with self._engine.announce() as reservation, ExitStack() as models:
            leased.report("load", 0, 0)
            resolved = retry_while_unavailable(
                leased, lambda: models.enter_context(self._resolver.on_disk(job, leased.report))
            )
            resolved_s = monotonic()
            kept = self._spool.load(job.id)
            if kept:
                output = JobOutput.from_spool(kept)
            else:
                render = partial(
                    self._engine.render,
                    priority=job.priority,
                    # Else whoever is drawn beside a job that takes workers down would fall with it.
                    alone=job.faults > 0,
                    reservation=reservation,
                    while_waiting=partial(self._read_ahead, resolved.files),
                )
                leased.report("queued", 0, 0)
                output = run_job(resolved, render, leased, self._encode, slot.mark_rendered)
        images = self._publisher.store(leased, folder, output.pictures)
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
        return self._publisher.publish(leased, folder, result)

    def _succeed(self, lease: Lease, result: JobResult) -> str:
        if not self._ledger.succeed(lease, result):
            return "lost: another worker has the job"
        metrics.JOBS.labels(lease.job.kind, "succeeded").inc()
        count = len(result.images)
        return f"succeeded: {count} picture{'s' if count > 1 else ''}"

    def _end(self, lease: Lease, error: ImagefleetError) -> None:
        if self._ledger.fail(lease, error):
            metrics.JOBS.labels(lease.job.kind, type(error).__name__).inc()
            self._spool.delete(lease.job.id)
        else:
            # Others have the job; should it come back here, its pictures are needed.
            logger.warning("job %s failed after its lease was lost: %s", lease.job.id, error)

    def _requeue(self, lease: Lease) -> str:
        wakeup = self._ledger.release(lease)
        if wakeup:
            try:
                publish(self._celery, wakeup)
            except OperationalError:
                logger.warning("job %s is handed back, its message was not published", lease.job.id)
        return "handed back"
