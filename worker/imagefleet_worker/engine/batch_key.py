"""Batch keys: queued jobs of equal key may share a batch."""

from collections.abc import Hashable

from imagefleet_shared.field_types import Priority
from imagefleet_shared.routing import PRIORITIES
from imagefleet_worker.engine.scheduler import LoadedState, SchedulingKey
from imagefleet_worker.prompts.plan import needs_negative
from imagefleet_worker.requests.resolved import (
    PassInputs,
    ResolvedGenerate,
    ResolvedJob,
    ResolvedUpscale,
)


def batch_key(job: ResolvedJob) -> Hashable:
    """Jobs of equal key may share a batch; None: the job runs alone.

    The key has all settings that a batch must have in common. Prompts, seeds and initial images may
    differ, and so may the lengths of prompts within the same number of windows: padding to more
    windows would change what a shorter prompt means.
    """
    if isinstance(job, ResolvedUpscale):
        return None
    request = job.request
    return (
        *(_pass_key(inputs, request.guidance_scale) for inputs in job.all_pass_inputs),
        *(job.width, job.height, job.step_plan, job.upscale, job.faces),
        job.hires and (job.hires.size, job.hires.upscaler, job.hires.step_plan),
        job.refiner and job.refiner.switch_at,
        (job.seeds.variation_strength, job.seeds.resize_from, job.seeds.rng),
        *(request.guidance_scale, request.clip_skip, request.emphasis),
    )


def _pass_key(inputs: PassInputs, guidance_scale: float) -> Hashable:
    """What the passes of a batch must have in common."""
    guided = needs_negative(inputs.prompt, guidance_scale)
    return (inputs.checkpoint, inputs.loras, inputs.windows, guided)


def scheduling_key(job: ResolvedJob, priority: Priority, *, alone: bool = False) -> SchedulingKey:
    """The properties by which a job is scheduled; `alone`: it shares no batch."""
    all_inputs = [] if isinstance(job, ResolvedUpscale) else job.all_pass_inputs
    return SchedulingKey(
        batch_key=None if alone else batch_key(job),
        pixels=pixels_of(job),
        first_state=_loaded_state(all_inputs[0]) if all_inputs else None,
        last_state=_loaded_state(all_inputs[-1]) if all_inputs else None,
        family=all_inputs[0].checkpoint.family if all_inputs else None,
        priority=PRIORITIES[priority],
    )


def _loaded_state(inputs: PassInputs) -> LoadedState:
    return (inputs.checkpoint, inputs.loras)


def pixels_of(job: ResolvedJob) -> int:
    """Pixels of all of a job's images in its largest pass."""
    if isinstance(job, ResolvedUpscale):
        return job.picture.image.width * job.picture.image.height
    return len(job.seeds.seeds) * _largest_pass(job)


def _largest_pass(job: ResolvedGenerate) -> int:
    hires = job.hires.size.width * job.hires.size.height if job.hires else 0
    return max(job.width * job.height, hires)
