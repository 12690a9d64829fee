"""Status and progress of a job."""

from enum import StrEnum
from typing import Literal

from imagefleet_shared.field_types import Frozen


class JobStatus(StrEnum):
    """Status of a job: queued, running, or one of three final ones; queued again if its worker is
    lost."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


Stage = Literal[
    "queued",
    "load",
    "adapters",
    "text",
    "denoise",
    "hires",
    "decode",
    "faces",
    "upscale",
    "store",
    "done",
]
"""Stage of a job; a job may enter a stage more than once.

The job's models are resolved and downloaded (load), then the job waits for its turn on the device
(queued again), then its models are loaded (load again). If images are enlarged between passes, as
by a hires pass, they are decoded before and after.
"""


class Progress(Frozen):
    """Progress of a job: its stage, and how many of the stage's steps are done."""

    status: JobStatus
    stage: Stage = "queued"
    step: int = 0
    """Steps done, from 0: steps of denoise and hires, faces of faces, tiles of upscale, downloaded
    megabytes of load."""
    steps: int = 0
    """Steps of this stage; 0 if it has none."""
    attempt: int = 0
    """Which attempt this is, from 1; 0 before the first lease."""
