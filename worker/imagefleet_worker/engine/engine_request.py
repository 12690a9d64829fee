"""Requests to the engine, and their outputs."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic

from PIL import Image

from imagefleet_worker.engine.scheduler import SchedulingKey
from imagefleet_worker.progress import JobCallbacks, ProgressCallback
from imagefleet_worker.requests.resolved import ResolvedJob, ResolvedUpscale


@dataclass(frozen=True)
class RenderOutput:
    """A rendered job."""

    images: list[Image.Image]
    waited_s: float
    """In the engine's queue."""
    stages_s: dict[str, float]
    """Of the whole batch."""
    batch_jobs: int
    """Jobs in the batch, this one included."""


@dataclass(eq=False)
class EngineRequest:
    """A job given to the engine, with its callbacks and its future."""

    job: ResolvedJob
    scheduling_key: SchedulingKey
    report: ProgressCallback
    callbacks: JobCallbacks
    enqueued_at: float = field(default_factory=monotonic)
    done: "Future[RenderOutput]" = field(default_factory=Future)


def image_slices(requests: Sequence[EngineRequest]) -> list[tuple[JobCallbacks, slice]]:
    """Each job's callbacks with the slice of its images in the batch."""
    slices: list[tuple[JobCallbacks, slice]] = []
    first = 0
    for request in requests:
        count = 1 if isinstance(request.job, ResolvedUpscale) else len(request.job.seeds.seeds)
        slices.append((request.callbacks, slice(first, first + count)))
        first += count
    return slices
