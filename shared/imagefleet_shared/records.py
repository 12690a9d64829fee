"""Job records, leases and errors, as they are stored in the ledger."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

from imagefleet_shared import errors
from imagefleet_shared.errors import ImagefleetError
from imagefleet_shared.field_types import JobKind, Priority
from imagefleet_shared.requests import Request, parse_request
from imagefleet_shared.results import JobResult
from imagefleet_shared.status import JobStatus, Progress, Stage


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as recorded in the ledger."""

    id: str
    kind: JobKind
    priority: Priority
    request_json: str
    progress: Progress
    faults: int
    """Workers lost while they ran it."""
    worker: str
    submitted_s: float
    """Unix time by Redis's clock."""
    leased_s: float
    """Unix time at which the current attempt began; 0 before the first."""
    allowed_s: float | None
    """Seconds from submit within which the job must end."""
    cancel_requested: bool
    """Whether it was canceled while it ran."""
    result_json: str | None
    error_json: str | None

    @classmethod
    def from_fields(cls, job_id: str, fields: Mapping[str, str]) -> Self:
        """Read a record from its Redis hash."""
        return cls(
            id=job_id,
            kind=cast(JobKind, fields["kind"]),
            priority=cast(Priority, fields["priority"]),
            request_json=fields["request"],
            progress=Progress(
                status=JobStatus(fields["status"]),
                stage=cast(Stage, fields["stage"]),
                step=int(fields["step"]),
                steps=int(fields["steps"]),
                attempt=int(fields["attempt"]),
            ),
            faults=int(fields.get("faults", 0)),
            worker=fields["worker"],
            submitted_s=float(fields["submitted_s"]),
            leased_s=float(fields.get("leased_s", 0)),
            allowed_s=float(fields["allowed_s"]) if fields["allowed_s"] else None,
            cancel_requested=bool(fields["cancel"]),
            result_json=fields.get("result"),
            error_json=fields.get("error"),
        )

    @property
    def status(self) -> JobStatus:
        """The job's status."""
        return self.progress.status

    def request(self) -> Request:
        """The request as submitted."""
        return parse_request(self.kind, self.request_json)

    def result(self) -> JobResult:
        """The result of a job that succeeded.

        Raises:
            ImagefleetError: the job's own error, if it failed or was canceled.
        """
        if self.error_json is not None:
            raise load_error(self.error_json)
        assert self.result_json is not None, f"job {self.id} has not ended"
        return JobResult.model_validate_json(self.result_json)


@dataclass(frozen=True)
class Lease:
    """The right to run a job: renewed while the job runs, proven by its token."""

    job: JobRecord
    token: str


@dataclass(frozen=True)
class Wakeup:
    """A message to publish for a queued job."""

    job_id: str
    kind: JobKind
    priority: Priority
    sequence: int


def dump_error(error: ImagefleetError) -> str:
    """An error as JSON: its class name and args."""
    return json.dumps({"type": type(error).__name__, "args": error.args})


def load_error(text: str) -> ImagefleetError:
    """The error that `dump_error` wrote; an unknown class becomes the base class."""
    value = json.loads(text)
    cls = getattr(errors, value["type"], None)
    if isinstance(cls, type) and issubclass(cls, ImagefleetError):
        return cls(*value["args"])
    return ImagefleetError(value["type"], *value["args"])
