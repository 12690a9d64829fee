"""Where a job stands."""

from enum import StrEnum
from typing import Literal

from imagefleet_shared.field_types import Frozen


class JobStatus(StrEnum):
    """The life of a job: queued, running, one of three ends; a lost worker's is queued again."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
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
"""What is being done to a job; it may come to a stage more than once.

A worker looks for the job's models (load), then the job waits for its turn on the device (queued
once more), and then its models are read (load once more). Where pictures are enlarged on their way,
as a hires pass does, they are decoded before and after.
"""


class Progress(Frozen):
    """How far a job is: a stage, and the steps done of that stage's steps."""

    status: JobStatus
    stage: Stage = "queued"
    step: int = 0
    """Done, from 0: steps (of denoise, hires), faces (of faces), tiles (of upscale), megabytes
    fetched (of load)."""
    steps: int = 0
    """Steps of this stage; 0 where it has none."""
    attempt: int = 0
    """Which attempt this is, from 1; 0 while no worker has taken the job."""
