"""Why a job must stop: canceled, past its time limit, its lease lost, or returned to the queue."""

from typing import Literal

from imagefleet_shared.errors import JobCanceled, JobTimeout
from imagefleet_shared.ledger import LeaseStatus
from imagefleet_shared.records import JobRecord

LeaseState = LeaseStatus | Literal["requeued"]


class LeaseLost(Exception):
    """Another worker may have the job: stop, and change nothing."""


class Requeue(Exception):
    """This worker shuts down: stop, and return the job to the queue."""


class Cancellation:
    """Whether a job must stop; the first reason is final. Safe to use from any thread."""

    def __init__(self, job: JobRecord) -> None:
        self._job = job
        self._state: LeaseState = "held"

    def apply(self, state: LeaseState) -> None:
        """Record the state of the job's lease."""
        if self._state in ("held", "watched"):
            self._state = state

    def check(self) -> None:
        """Raise if the job must stop.

        Raises:
            JobCanceled, JobTimeout, LeaseLost, Requeue: why it must stop.
        """
        match self._state:
            case "held" | "watched":
                return
            case "canceled":
                raise JobCanceled(self._job.id)
            case "late":
                raise JobTimeout(self._job.id, self._job.allowed_s or 0)
            case "lost":
                raise LeaseLost(self._job.id)
            case "requeued":
                raise Requeue(self._job.id)
