"""What the engine is asked for, and what it gives."""

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
    """What the engine made of a job."""

    images: list[Image.Image]
    waited_s: float
    """In the engine's line."""
    stages_s: dict[str, float]
    """Of the whole batch."""
    batch_jobs: int
    """Jobs in the batch, this one included."""


@dataclass(eq=False)
class EngineRequest:
    """A job in the engine's hands, and who waits for it."""

    job: ResolvedJob
    scheduling_key: SchedulingKey
    report: ProgressCallback
    callbacks: JobCallbacks
    enqueued_at: float = field(default_factory=monotonic)
    done: "Future[RenderOutput]" = field(default_factory=Future)


def image_slices(requests: Sequence[EngineRequest]) -> list[tuple[JobCallbacks, slice]]:
    """The viewers, each with the places of its job's pictures in the batch."""
    places: list[tuple[JobCallbacks, slice]] = []
    first = 0
    for request in requests:
        count = 1 if isinstance(request.job, ResolvedUpscale) else len(request.job.seeds.seeds)
        places.append((request.callbacks, slice(first, first + count)))
        first += count
    return places
