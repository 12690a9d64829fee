"""Generate jobs that are rendered as one batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from PIL import Image

from imagefleet_worker.requests.resolved import ResolvedGenerate
from imagefleet_worker.sampling.seeds import Seeds

T = TypeVar("T")


class Batch:
    """Jobs that run together: their shared settings and the inputs of each picture."""

    def __init__(self, jobs: Sequence[ResolvedGenerate]) -> None:
        self._jobs = jobs
        self.shared = jobs[0]
        """One of the jobs, for the settings that are equal in all of them."""
        self.seeds = _concatenate_seeds([job.seeds for job in jobs])
        """One per picture."""

    def per_image(self, value: Callable[[ResolvedGenerate], T]) -> list[T]:
        """A value of each picture's job, in the order of the batch."""
        return [value(job) for job in self._jobs for _ in job.seeds.seeds]

    def apply_overlays(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Rendered pictures, with the unmasked parts of the initial images laid over them."""
        initial_images = self.per_image(lambda job: job.initial_image)
        return [
            initial.apply_overlay(picture) if initial else picture
            for initial, picture in zip(initial_images, pictures, strict=True)
        ]

    def by_job(self, pictures: Sequence[Image.Image]) -> list[list[Image.Image]]:
        """The batch's pictures, grouped by job."""
        remaining = iter(pictures)
        return [list(islice(remaining, len(job.seeds.seeds))) for job in self._jobs]


def _concatenate_seeds(parts: Sequence[Seeds]) -> Seeds:
    """The seeds of a batch, whose jobs have the same seed settings except for the numbers."""
    return replace(
        parts[0],
        seeds=tuple(seed for part in parts for seed in part.seeds),
        variation_seeds=tuple(seed for part in parts for seed in part.variation_seeds or ()),
    )
