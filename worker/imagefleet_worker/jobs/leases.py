"""The jobs that this worker holds: one thread renews their leases and hears of their end."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Literal

from PIL import Image
from redis.exceptions import RedisError

from imagefleet_shared.errors import JobCanceled, JobTimeout
from imagefleet_shared.ledger import LeaseStatus, Ledger
from imagefleet_shared.records import JobRecord, Lease
from imagefleet_shared.status import Stage
from imagefleet_worker.jobs.encode import encode_preview

logger = logging.getLogger(__name__)

RENEW_INTERVAL_S = 0.25
"""Progress is told, and cancels are heard, this often, for all jobs held at once."""

LeaseState = LeaseStatus | Literal["handed_back"]


class LeaseLost(Exception):
    """The job is no longer ours: stop, and change nothing."""


class Requeue(Exception):
    """This worker shuts down: stop, and give the job back to the queue."""


class LeasedJob:
    """A job that this worker holds. `tell` may be called from any thread.

    Args:
        lease: of the job.
        ledger: that gave it.
        wake: called when what was told should reach the ledger at once.
    """

    def __init__(self, lease: Lease, ledger: Ledger, wake: Callable[[], None]) -> None:
        self.lease = lease
        self._ledger = ledger
        self._wake = wake
        self._state: LeaseState = "held"
        self._previews: Sequence[Image.Image] = ()
        self.preview_wanted = False
        """Whether somebody waits for a preview."""
        self._progress: tuple[Stage, int, int] = ("queued", 0, 0)

    @property
    def job(self) -> JobRecord:
        """The job's record, as it was when the lease was taken."""
        return self.lease.job

    def report(self, stage: Stage, step: int, steps: int) -> None:
        """Say how far the job is; costs nothing, the keeper passes it on. Raises as `check`.

        That it waits, or no longer does, is passed on at once: should this worker die, it decides
        whether the job may have been at fault.
        """
        waited = self._progress[0] == "queued"
        self._progress = (stage, step, steps)
        if (stage == "queued") != waited:
            self._wake()
        self.check_canceled()

    def check_canceled(self) -> None:
        """Go on, or not.

        Raises:
            JobCanceled, JobTimeout, LeaseLost, HandBack: the job must not go on.
        """
        match self._state:
            case "held" | "watched":
                return
            case "canceled":
                raise JobCanceled(self.job.id)
            case "late":
                raise JobTimeout(self.job.id, self.job.allowed_s or 0)
            case "lost":
                raise LeaseLost(self.job.id)
            case "handed_back":
                raise Requeue(self.job.id)

    def renew_now(self) -> None:
        """Renew the lease now, before something that cannot be taken back.

        A process that was stopped for a while learns here that others have its job. Raises as
        `check`.
        """
        [state] = self._ledger.renew([self.renewal()])
        self.apply(state)
        self.check_canceled()

    def renewal(self) -> tuple[Lease, Stage, int, int]:
        """What the ledger is to be told."""
        return (self.lease, *self._progress)

    def apply(self, state: LeaseState) -> None:
        """Take note of what becomes of the job; the first end that is heard counts."""
        if state == "watched":
            self.preview_wanted = True
        elif state != "held" and self._state == "held":
            self._state = state

    def show_preview(self, previews: Sequence[Image.Image]) -> None:
        """Give what the pictures look like so far; costs nothing, the keeper passes it on."""
        self._previews = previews
        self.preview_wanted = False

    def publish_preview(self) -> None:
        """Put what was shown where apps see it."""
        previews, self._previews = self._previews, ()
        if previews:
            self._ledger.publish_preview(self.lease, encode_preview(previews))


class LeaseKeeper(Thread):
    """Renews the leases of all jobs held, until closed."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._ledger = ledger
        self._leased: set[LeasedJob] = set()
        self._changed = Condition()
        self._woken = self._requeueing = self._closed = False

    @contextmanager
    def hold(self, lease: Lease) -> Generator[LeasedJob]:
        """Keep a lease for as long as the context lasts."""
        leased = LeasedJob(lease, self._ledger, self._wake)
        with self._changed:
            if self._requeueing:
                leased.apply("handed_back")
            self._leased.add(leased)
            self._changed.notify()
        try:
            yield leased
        finally:
            with self._changed:
                self._leased.discard(leased)

    def requeue_all(self) -> None:
        """Stop every job held now or later at its next step and give it back."""
        with self._changed:
            self._requeueing = True
            for leased in self._leased:
                leased.apply("handed_back")

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
                leased = list(self._leased)
            self._renew(leased)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._woken or self._closed, timeout=RENEW_INTERVAL_S
                )

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def _renew(self, leased: list[LeasedJob]) -> None:
        try:
            # Before the beat: whoever hears of a step finds the preview of it.
            for one in leased:
                one.publish_preview()
            states = self._ledger.renew([one.renewal() for one in leased])
        except RedisError as exc:  # away, or refusing to write: the next beat may get through
            logger.warning("leases not renewed: %s", exc)
            return
        for one, state in zip(leased, states, strict=True):
            one.apply(state)
