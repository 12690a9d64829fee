"""What the engine is asked for, and what it gives."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic

from PIL import Image

from imagefleet_worker.engine.scheduler import Traits
from imagefleet_worker.progress import Tell, Viewer
from imagefleet_worker.requests.resolved import ResolvedJob, ResolvedUpscale


@dataclass(frozen=True)
class Rendered:
    """What the engine made of a job."""

    images: list[Image.Image]
    waited_s: float
    """In the engine's line."""
    stages_s: dict[str, float]
    """Of the whole batch."""
    batch_jobs: int
    """Jobs in the batch, this one included."""


@dataclass(eq=False)
class Order:
    """A job in the engine's hands, and who waits for it."""

    job: ResolvedJob
    traits: Traits
    tell: Tell
    viewer: Viewer
    ordered_s: float = field(default_factory=monotonic)
    done: "Future[Rendered]" = field(default_factory=Future)


def seated(orders: Sequence[Order]) -> list[tuple[Viewer, slice]]:
    """The viewers, each with the places of its job's pictures in the batch."""
    places: list[tuple[Viewer, slice]] = []
    first = 0
    for order in orders:
        count = 1 if isinstance(order.job, ResolvedUpscale) else len(order.job.seeds.seeds)
        places.append((order.viewer, slice(first, first + count)))
        first += count
    return places
