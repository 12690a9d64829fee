"""The jobs that this worker holds: one thread renews their leases and hears of their end."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Literal

from PIL import Image
from redis.exceptions import RedisError

from imagefleet_shared.errors import JobCanceled, JobTimeout
from imagefleet_shared.ledger import Held, Ledger
from imagefleet_shared.records import JobRecord, Lease
from imagefleet_shared.status import Stage
from imagefleet_worker.jobs.encode import encode_sketches

logger = logging.getLogger(__name__)

BEAT_S = 0.25
"""Progress is told, and cancels are heard, this often, for all jobs held at once."""

Verdict = Held | Literal["handed_back"]


class LeaseLost(Exception):
    """The job is no longer ours: stop, and change nothing."""


class HandBack(Exception):
    """This worker shuts down: stop, and give the job back to the queue."""


class HeldJob:
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
        self._verdict: Verdict = "held"
        self._sketches: Sequence[Image.Image] = ()
        self.watched = False
        """Whether somebody waits for a preview."""
        self._progress: tuple[Stage, int, int] = ("queued", 0, 0)

    @property
    def job(self) -> JobRecord:
        """The job's record, as it was when the lease was taken."""
        return self.lease.job

    def tell(self, stage: Stage, step: int, steps: int) -> None:
        """Say how far the job is; costs nothing, the keeper passes it on. Raises as `check`.

        That it waits, or no longer does, is passed on at once: should this worker die, it decides
        whether the job may have been at fault.
        """
        waited = self._progress[0] == "queued"
        self._progress = (stage, step, steps)
        if (stage == "queued") != waited:
            self._wake()
        self.check()

    def check(self) -> None:
        """Go on, or not.

        Raises:
            JobCanceled, JobTimeout, LeaseLost, HandBack: the job must not go on.
        """
        match self._verdict:
            case "held" | "watched":
                return
            case "canceled":
                raise JobCanceled(self.job.id)
            case "late":
                raise JobTimeout(self.job.id, self.job.allowed_s or 0)
            case "lost":
                raise LeaseLost(self.job.id)
            case "handed_back":
                raise HandBack(self.job.id)

    def confirm(self) -> None:
        """Renew the lease now, before something that cannot be taken back.

        A process that was stopped for a while learns here that others have its job. Raises as
        `check`.
        """
        [verdict] = self._ledger.renew([self.beat()])
        self.hear(verdict)
        self.check()

    def beat(self) -> tuple[Lease, Stage, int, int]:
        """What the ledger is to be told."""
        return (self.lease, *self._progress)

    def hear(self, verdict: Verdict) -> None:
        """Take note of what becomes of the job; the first end that is heard counts."""
        if verdict == "watched":
            self.watched = True
        elif verdict != "held" and self._verdict == "held":
            self._verdict = verdict

    def show(self, sketches: Sequence[Image.Image]) -> None:
        """Give what the pictures look like so far; costs nothing, the keeper passes it on."""
        self._sketches = sketches
        self.watched = False

    def pass_on_sketches(self) -> None:
        """Put what was shown where apps see it."""
        sketches, self._sketches = self._sketches, ()
        if sketches:
            self._ledger.show(self.lease, encode_sketches(sketches))


class LeaseKeeper(Thread):
    """Renews the leases of all jobs held, until closed."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._ledger = ledger
        self._held: set[HeldJob] = set()
        self._changed = Condition()
        self._woken = self._handing_back = self._closed = False

    @contextmanager
    def hold(self, lease: Lease) -> Generator[HeldJob]:
        """Keep a lease for as long as the context lasts."""
        held = HeldJob(lease, self._ledger, self._wake)
        with self._changed:
            if self._handing_back:
                held.hear("handed_back")
            self._held.add(held)
            self._changed.notify()
        try:
            yield held
        finally:
            with self._changed:
                self._held.discard(held)

    def hand_back_all(self) -> None:
        """Stop every job held now or later at its next step and give it back."""
        with self._changed:
            self._handing_back = True
            for held in self._held:
                held.hear("handed_back")

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._closed)
                if self._closed:
                    return
                self._woken = False
                held = list(self._held)
            self._renew(held)
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._closed, timeout=BEAT_S)

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def _renew(self, held: list[HeldJob]) -> None:
        try:
            # Before the beat: whoever hears of a step finds the preview of it.
            for one in held:
                one.pass_on_sketches()
            verdicts = self._ledger.renew([one.beat() for one in held])
        except RedisError as exc:  # away, or refusing to write: the next beat may get through
            logger.warning("leases not renewed: %s", exc)
            return
        for one, verdict in zip(held, verdicts, strict=True):
            one.hear(verdict)
