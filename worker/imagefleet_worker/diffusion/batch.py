"""Jobs that are drawn together, and what each of them has of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from PIL import Image

from imagefleet_worker.requests.resolved import ResolvedGenerate
from imagefleet_worker.sampling.seeds import Seeds

T = TypeVar("T")


class Batch:
    """Jobs that run together: what they share, and what each picture has of its own."""

    def __init__(self, jobs: Sequence[ResolvedGenerate]) -> None:
        self._jobs = jobs
        self.shared = jobs[0]
        """Any of the jobs, for the settings that are equal in all of them."""
        self.seeds = _joined([job.seeds for job in jobs])
        """One per picture."""

    def per_picture(self, value: Callable[[ResolvedGenerate], T]) -> list[T]:
        """Something of each picture's job."""
        return [value(job) for job in self._jobs for _ in job.seeds.seeds]

    def overlay_kept(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Drawn pictures, with what masks keep of the initial ones."""
        starts = self.per_picture(lambda job: job.initial_image)
        return [
            start.overlay_kept(picture) if start else picture
            for start, picture in zip(starts, pictures, strict=True)
        ]

    def by_job(self, pictures: Sequence[Image.Image]) -> list[list[Image.Image]]:
        """Pictures of the batch, put to their jobs."""
        left = iter(pictures)
        return [list(islice(left, len(job.seeds.seeds))) for job in self._jobs]


def _joined(parts: Sequence[Seeds]) -> Seeds:
    """The seeds of a batch; their jobs differ in nothing but the numbers."""
    return replace(
        parts[0],
        seeds=tuple(seed for part in parts for seed in part.seeds),
        variation_seeds=tuple(seed for part in parts for seed in part.variation_seeds or ()),
    )
