"""Batches: which waiting jobs run together, and what each of them has of its own."""

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import TypeVar

from PIL import Image

from .resolve import ResolvedGenerate, ResolvedJob, ResolvedUpscale

T = TypeVar("T")


def batch_key(job: ResolvedJob) -> Hashable:
    """Jobs of equal key may share a batch; None: the job runs alone.

    Equal are all settings that the whole batch has in common; prompts, seeds and initial pictures
    may differ. So may prompts' lengths, within a number of windows: another number would change
    what a shorter prompt means.
    """
    if isinstance(job, ResolvedUpscale):
        return None
    request = job.request
    return (
        *(job.checkpoint, job.loras, job.windows),
        *(job.width, job.height, job.hires, job.upscale),
        job.start and job.start.strength,
        *(request.num_inference_steps, request.scheduler, request.sigma_schedule),
        *(request.guidance_scale, request.clip_skip),
    )


def together(waiting: Sequence[ResolvedJob], max_pixels: int) -> list[int]:
    """Places of the jobs to run next: the one that waited longest, and those that fit with it.

    Args:
        waiting: oldest first, at least one.
        max_pixels: of all pictures of a batch in their largest pass; one job alone may exceed it.
    """
    key = batch_key(waiting[0])
    chosen, pixels = [0], pixels_of(waiting[0])
    for place, job in enumerate(waiting[1:], start=1):
        if key is None or batch_key(job) != key or pixels + pixels_of(job) > max_pixels:
            continue
        chosen.append(place)
        pixels += pixels_of(job)
    return chosen


def pixels_of(job: ResolvedJob) -> int:
    """Pixels of a job's pictures in the largest pass that diffuses them."""
    if isinstance(job, ResolvedUpscale):
        return job.image.width * job.image.height
    return len(job.seeds) * _largest(job)


def _largest(job: ResolvedGenerate) -> int:
    hires = job.hires.width * job.hires.height if job.hires else 0
    return max(job.width * job.height, hires)


class Batch:
    """Jobs that run together: what they share, and what each picture has of its own."""

    def __init__(self, jobs: Sequence[ResolvedGenerate]) -> None:
        self._jobs = jobs
        self.shared = jobs[0]
        """Any of the jobs, for the settings that are equal in all of them."""
        self.seeds = [seed for job in jobs for seed in job.seeds]
        """One per picture."""

    def per_picture(self, value: Callable[[ResolvedGenerate], T]) -> list[T]:
        """Something of each picture's job."""
        return [value(job) for job in self._jobs for _ in job.seeds]

    def by_job(self, pictures: Sequence[Image.Image]) -> list[list[Image.Image]]:
        """Pictures of the batch, put to their jobs."""
        left = iter(pictures)
        return [list(islice(left, len(job.seeds))) for job in self._jobs]
