"""Which waiting jobs may run together: those of equal key."""

from collections.abc import Hashable

from imagefleet_shared.field_types import Priority
from imagefleet_shared.routing import PRIORITIES
from imagefleet_worker.engine.scheduler import Setup, Traits
from imagefleet_worker.prompts.plan import needs_negative
from imagefleet_worker.requests.resolved import Look, ResolvedGenerate, ResolvedJob, ResolvedUpscale


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
        *(_shared(look, request.guidance_scale) for look in job.looks),
        *(job.width, job.height, job.steps, job.upscale, job.faces),
        job.hires and (job.hires.size, job.hires.upscaler, job.hires.steps),
        job.refiner and job.refiner.switch_at,
        (job.seeds.variation_strength, job.seeds.resize_from, job.seeds.rng),
        *(request.guidance_scale, request.clip_skip, request.emphasis),
    )


def _shared(look: Look, guidance_scale: float) -> Hashable:
    """What of a look a batch has in common."""
    guided = needs_negative(look.prompt, guidance_scale)
    return (look.checkpoint, look.loras, look.windows, guided)


def traits_of(job: ResolvedJob, priority: Priority, *, alone: bool = False) -> Traits:
    """What of a job decides about its turn; `alone`: it shares no batch."""
    looks = [] if isinstance(job, ResolvedUpscale) else job.looks
    return Traits(
        key=None if alone else batch_key(job),
        pixels=pixels_of(job),
        begins=_setup(looks[0]) if looks else None,
        ends=_setup(looks[-1]) if looks else None,
        family=looks[0].checkpoint.family if looks else None,
        priority=PRIORITIES[priority],
    )


def _setup(look: Look) -> Setup:
    return (look.checkpoint, look.loras)


def pixels_of(job: ResolvedJob) -> int:
    """Pixels of a job's pictures in the largest pass that diffuses them."""
    if isinstance(job, ResolvedUpscale):
        return job.picture.image.width * job.picture.image.height
    return len(job.seeds.seeds) * _largest(job)


def _largest(job: ResolvedGenerate) -> int:
    hires = job.hires.size.width * job.hires.size.height if job.hires else 0
    return max(job.width * job.height, hires)
