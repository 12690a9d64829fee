"""The record of every job in Redis: the source of truth; queue messages only wake workers up.

A job is submitted, leased by one worker at a time, renewed while it runs, and ends once. Each
transition is one transaction (`ledger_scripts`). A worker proves its lease by the lease's token; a
worker that lost the lease cannot change the job any more.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from math import inf
from time import monotonic, sleep
from typing import Any, Literal, cast
from uuid import uuid4

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from imagefleet_shared import ledger_scripts, routing
from imagefleet_shared.errors import ImagefleetError, JobCanceled, JobNotFound, JobTimeout
from imagefleet_shared.field_types import JobKind, Priority
from imagefleet_shared.poison import MAX_ATTEMPTS, MAX_FAULTS
from imagefleet_shared.records import JobRecord, Lease, Wakeup, dump_error
from imagefleet_shared.requests import Request
from imagefleet_shared.results import JobResult
from imagefleet_shared.status import JobStatus, Stage

FIRST_CHECK_S = 5
"""How long a published message may wait to be leased before the job is reconciled."""
OUTAGE_S = 60
"""How long a waiting app tolerates an unreachable Redis."""
EXPIRE_CHECK_S = 1
"""How often a waiting app checks whether to end a job that is late or was canceled."""

UNREACHABLE = (RedisConnectionError, RedisTimeoutError)

WATCHED_S = 5
"""How long a request for a preview counts."""
PREVIEW_TTL_S = 60

LeaseStatus = Literal["held", "watched", "canceled", "late", "lost"]
"""State of a lease: the last three end the job; `watched` means held, and a preview is wanted."""


class Ledger:
    """Transitions of jobs in one Redis; safe to share between threads."""

    def __init__(self, redis: Redis, *, record_ttl_s: int, lease_s: float = 30) -> None:
        self._redis = redis
        self._ttl_s = record_ttl_s
        self._lease_s = lease_s

        def script(source: str) -> Any:  # noqa: ANN401 — redis-py types a script's reply as Any
            return redis.register_script(ledger_scripts.PRELUDE + source)

        self._submit = script(ledger_scripts.SUBMIT)
        self._lease = script(ledger_scripts.LEASE)
        self._renew = script(ledger_scripts.RENEW)
        self._publish_preview = script(ledger_scripts.PUBLISH_PREVIEW)
        self._end = script(ledger_scripts.END)
        self._release = script(ledger_scripts.RELEASE)
        self._cancel = script(ledger_scripts.CANCEL)
        self._expire = script(ledger_scripts.EXPIRE)
        self._reconcile = script(ledger_scripts.RECONCILE)

    # Called by apps.

    def submit(
        self,
        job_id: str,
        kind: JobKind,
        request: Request,
        priority: Priority,
        allowed_s: float | None,
    ) -> Wakeup:
        """Record a new job; submitting the same id twice records one job."""
        sequence = self._submit(
            keys=[routing.job_key(job_id), routing.OPEN_KEY, routing.SEQUENCE_KEY],
            args=[
                *(job_id, FIRST_CHECK_S, "" if allowed_s is None else allowed_s),
                *("kind", kind, "priority", priority, "request", request.model_dump_json()),
            ],
        )
        return Wakeup(job_id, kind, priority, int(sequence))

    def read(self, job_id: str) -> JobRecord:
        """A job's record.

        Raises:
            JobNotFound: there is none.
        """
        fields = cast(dict[str, str], self._redis.hgetall(routing.job_key(job_id)))
        if not fields:
            raise JobNotFound(job_id)
        return JobRecord.from_fields(job_id, fields)

    def read_or_expire(self, job_id: str) -> JobRecord:
        """A job's record, after ending the job if it must stop and no worker has its lease.

        A job must stop if it was canceled or is past its time limit. If no worker is live, nobody
        else ends it.

        Raises:
            JobNotFound: there is none.
        """
        record = self.read(job_id)
        if record.status.ended or (record.allowed_s is None and not record.cancel_requested):
            return record
        if self._expire(keys=self._keys(job_id), args=self._args(job_id, self._ttl_s)):
            return self.read(job_id)
        return record

    def watch(self, job_id: str, timeout_s: float | None) -> Iterator[JobRecord]:
        """The job's record now and after every change, until the job has ended.

        Raises:
            JobNotFound: there is no such job.
            JobTimeout: `timeout_s` passed and the job has not ended.
            redis.ConnectionError, redis.TimeoutError: Redis is unreachable when `timeout_s` has
                passed, or was for a minute; whether the job has ended is not known.
        """
        deadline = inf if timeout_s is None else monotonic() + timeout_s
        last_answer, last_check, last_seen = monotonic(), -inf, None
        with self._redis.pubsub(ignore_subscribe_messages=True) as events:
            while True:
                try:
                    if not events.subscribed:
                        events.subscribe(routing.events_channel(job_id))
                    if monotonic() >= last_check + EXPIRE_CHECK_S:
                        record, last_check = self.read_or_expire(job_id), monotonic()
                    else:
                        record = self.read(job_id)
                    last_answer = monotonic()
                    if record.progress != last_seen:
                        yield record
                        last_seen = record.progress
                    if record.status.ended:
                        return
                    left_s = deadline - monotonic()
                    if left_s <= 0:
                        raise JobTimeout(job_id, cast(float, timeout_s))
                    events.get_message(timeout=min(1.0, left_s))
                except UNREACHABLE:
                    left_s = min(deadline, last_answer + OUTAGE_S) - monotonic()
                    if left_s <= 0:
                        raise
                    sleep(min(0.2, left_s))

    def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job: a queued one ends now, a running one within a step.

        Returns:
            The status before the cancel; an ended job stays as it is.

        Raises:
            JobNotFound: there is no such job.
        """
        status = self._cancel(keys=self._keys(job_id), args=self._args(job_id, self._ttl_s))
        if status is None:
            raise JobNotFound(job_id)
        return JobStatus(status)

    def preview(self, job_id: str) -> bytes | None:
        """The latest preview of a job, encoded; None if there is none.

        Calling this makes the job's worker produce one soon; otherwise it produces none.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(routing.watched_key(job_id), 1, ex=WATCHED_S)
        pipeline.get(routing.preview_key(job_id))
        encoded: str | None = pipeline.execute()[1]
        return None if encoded is None else b64decode(encoded)

    # Called by workers.

    def lease(self, job_id: str, worker: str) -> Lease | None:
        """Lease a queued job; None if it is leased, has ended, must stop, or does not exist."""
        token = uuid4().hex
        record: list[str] | None = self._lease(
            keys=self._keys(job_id),
            args=self._args(job_id, worker, token, self._lease_s, self._ttl_s),
        )
        if record is None:
            return None
        fields = dict(zip(record[::2], record[1::2], strict=True))
        return Lease(JobRecord.from_fields(job_id, fields), token)

    def renew(self, renewals: Iterable[tuple[Lease, Stage, int, int]]) -> list[LeaseStatus]:
        """Renew leases and report progress (stage, step, steps), of all jobs at once."""
        renewals = list(renewals)
        try:
            return self._renew_all(renewals)
        except NoScriptError:  # Redis was restarted after the pipeline had asked for its scripts
            return self._renew_all(renewals)

    def _renew_all(self, renewals: list[tuple[Lease, Stage, int, int]]) -> list[LeaseStatus]:
        pipeline = self._redis.pipeline(transaction=False)
        for lease, stage, step, steps in renewals:
            self._renew(
                keys=[*self._keys(lease.job.id), routing.watched_key(lease.job.id)],
                args=self._args(lease.job.id, lease.token, self._lease_s, stage, step, steps),
                client=pipeline,
            )
        return pipeline.execute()

    def publish_preview(self, lease: Lease, image: bytes) -> bool:
        """Publish a preview for a minute; False if the lease was lost and nothing was changed."""
        job_id, text = lease.job.id, b64encode(image).decode()
        return bool(
            self._publish_preview(
                keys=[*self._keys(job_id), routing.preview_key(job_id)],
                args=self._args(job_id, lease.token, text, PREVIEW_TTL_S),
            )
        )

    def succeed(self, lease: Lease, result: JobResult) -> bool:
        """End a job with its result; False if the lease was lost and nothing was changed."""
        return self._finish(lease, JobStatus.SUCCEEDED, "result", result.model_dump_json())

    def fail(self, lease: Lease, error: ImagefleetError) -> bool:
        """End a job with an error; False if the lease was lost and nothing was changed."""
        status = JobStatus.CANCELED if isinstance(error, JobCanceled) else JobStatus.FAILED
        return self._finish(lease, status, "error", dump_error(error))

    def release(self, lease: Lease) -> Wakeup | None:
        """Requeue a job without counting the attempt.

        None if the lease was lost, or if the job must stop: then it has ended.
        """
        job = lease.job
        sequence = self._release(
            keys=[*self._keys(job.id), routing.SEQUENCE_KEY],
            args=self._args(job.id, lease.token, FIRST_CHECK_S, self._ttl_s),
        )
        return Wakeup(job.id, job.kind, job.priority, int(sequence)) if sequence else None

    # Called by one worker at a time, for all jobs.

    def reconcile(self, limit: int = 1000) -> list[Wakeup]:
        """Reconcile open jobs that are due: expired leases, poison jobs, lost messages.

        Returns:
            Messages that the caller must publish; if it dies before, a later call returns them
            again.
        """
        now_s = self._redis.time()[0]
        due = cast(
            list[str],
            self._redis.zrange(routing.OPEN_KEY, "-inf", now_s, byscore=True, offset=0, num=limit),
        )
        return [wakeup for job_id in due if (wakeup := self._reconcile_one(job_id))]

    def lock_reconciler(self, worker: str, seconds: float) -> bool:
        """Whether this worker may reconcile for the next `seconds`."""
        key, ms = routing.RECONCILER_KEY, int(seconds * 1000)
        return bool(self._redis.set(key, worker, nx=True, px=ms)) or (
            self._redis.get(key) == worker and bool(self._redis.pexpire(key, ms))
        )

    def _reconcile_one(self, job_id: str) -> Wakeup | None:
        try:
            job = self.read(job_id)
        except JobNotFound:
            self._redis.zrem(routing.OPEN_KEY, job_id)
            return None
        sequence = self._reconcile(
            keys=[
                *self._keys(job_id),
                routing.SEQUENCE_KEY,
                routing.DEAD_KEY,
                routing.queue_list(routing.QUEUES[job.kind], job.priority),
            ],
            args=self._args(
                *(job_id, MAX_FAULTS, FIRST_CHECK_S, self._ttl_s, routing.SEQUENCE_HEADER),
                MAX_ATTEMPTS,
            ),
        )
        return Wakeup(job_id, job.kind, job.priority, int(sequence)) if sequence else None

    def _finish(self, lease: Lease, status: JobStatus, field: str, value: str) -> bool:
        args = self._args(lease.job.id, lease.token, status, field, value, self._ttl_s)
        return bool(self._end(keys=self._keys(lease.job.id), args=args))

    @staticmethod
    def _keys(job_id: str) -> list[str]:
        return [routing.job_key(job_id), routing.OPEN_KEY]

    @staticmethod
    def _args(job_id: str, *rest: str | float) -> list[str | float]:
        return [job_id, routing.events_channel(job_id), *rest]
