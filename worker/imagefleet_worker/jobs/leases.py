"""The jobs leased by this worker: one thread renews their leases and learns when they must stop."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread

from PIL import Image
from redis.exceptions import RedisError

from imagefleet_shared.ledger import Ledger
from imagefleet_shared.records import JobRecord, Lease
from imagefleet_shared.status import Stage
from imagefleet_worker.jobs.cancellation import Cancellation, LeaseState
from imagefleet_worker.jobs.encode import encode_preview

logger = logging.getLogger(__name__)

RENEW_INTERVAL_S = 0.25
"""How often leases are renewed, all at once; this also sends progress and notices cancels."""


class LeasedJob:
    """A job leased by this worker. `report` may be called from any thread.

    Args:
        lease: of the job.
        ledger: that granted it.
        wake: called when the reported progress should reach the ledger at once.
    """

    def __init__(self, lease: Lease, ledger: Ledger, wake: Callable[[], None]) -> None:
        self.lease = lease
        self._ledger = ledger
        self._wake = wake
        self._cancellation = Cancellation(lease.job)
        self._previews: Sequence[Image.Image] = ()
        self.preview_wanted = False
        """Whether an app waits for a preview."""
        self._progress: tuple[Stage, int, int] = ("queued", 0, 0)

    @property
    def job(self) -> JobRecord:
        """The job's record as of the lease."""
        return self.lease.job

    def report(self, stage: Stage, step: int, steps: int) -> None:
        """Report progress; cheap, the keeper sends it. Raises as `check_canceled`.

        Entering and leaving the engine's queue is sent at once: should this worker die, it decides
        whether the job may have been at fault.
        """
        was_queued = self._progress[0] == "queued"
        self._progress = (stage, step, steps)
        if (stage == "queued") != was_queued:
            self._wake()
        self.check_canceled()

    def check_canceled(self) -> None:
        """Raise if the job must stop.

        Raises:
            JobCanceled, JobTimeout, LeaseLost, Requeue: why it must stop.
        """
        self._cancellation.check()

    def renew_now(self) -> None:
        """Renew the lease now, before something that cannot be undone.

        A process that was stopped for a while learns here that its job was leased to another.
        Raises as `check_canceled`.
        """
        [state] = self._ledger.renew([self.renewal()])
        self.apply(state)
        self.check_canceled()

    def renewal(self) -> tuple[Lease, Stage, int, int]:
        """The lease and progress to send to the ledger."""
        return (self.lease, *self._progress)

    def apply(self, state: LeaseState) -> None:
        """Record the state of the lease; the first state that ends the job is final."""
        if state == "watched":
            self.preview_wanted = True
        self._cancellation.apply(state)

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        """Receive previews of the job's images; cheap, the keeper publishes them."""
        self._previews = previews
        self.preview_wanted = False

    def publish_preview(self) -> None:
        """Publish the latest previews, if there are new ones."""
        previews, self._previews = self._previews, ()
        if previews:
            self._ledger.publish_preview(self.lease, encode_preview(previews))


class LeaseKeeper(Thread):
    """Renews the leases of all leased jobs, until closed."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._ledger = ledger
        self._leased: set[LeasedJob] = set()
        self._changed = Condition()
        self._woken = self._requeueing = self._closed = False

    @contextmanager
    def keep_renewed(self, lease: Lease) -> Generator[LeasedJob]:
        """Renew a lease for as long as the context lasts."""
        leased = LeasedJob(lease, self._ledger, self._wake)
        with self._changed:
            if self._requeueing:
                leased.apply("requeued")
            self._leased.add(leased)
            self._changed.notify()
        try:
            yield leased
        finally:
            with self._changed:
                self._leased.discard(leased)

    def requeue_all(self) -> None:
        """Make every job leased now or later stop at its next step with `Requeue`."""
        with self._changed:
            self._requeueing = True
            for leased in self._leased:
                leased.apply("requeued")

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._leased or self._closed)
                if self._closed:
                    return
                self._woken = False
                jobs = list(self._leased)
            self._renew(jobs)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._woken or self._closed, timeout=RENEW_INTERVAL_S
                )

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def _renew(self, jobs: list[LeasedJob]) -> None:
        try:
            # Previews before progress: an app that sees a step finds the preview of it.
            for leased in jobs:
                leased.publish_preview()
            states = self._ledger.renew([leased.renewal() for leased in jobs])
        except RedisError as exc:  # unreachable, or refusing to write: the next call may succeed
            logger.warning("leases not renewed: %s", exc)
            return
        for leased, state in zip(jobs, states, strict=True):
            leased.apply(state)
