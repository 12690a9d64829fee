"""A diffusion pass: from noise, or from a picture's latents, to latents `(B, 4, H/8, W/8)`."""

import torch
from torch import Tensor

from imagefleet_worker.sampling.noise import Noise, brownian
from imagefleet_worker.sampling.noise_levels import NoiseLevels
from imagefleet_worker.sampling.pass_schedule import SampleSchedule, levels_for, make_schedule
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.sampling.steps import Denoise


def schedule_steps(plan: StepPlan) -> int:
    """What a prompt's schedule counts, as in A1111: two a step for solvers of second order."""
    return plan.requested * (2 if SOLVERS[plan.scheduler].second_order else 1)


def model_levels(plan: StepPlan, levels: NoiseLevels) -> NoiseLevels:
    """A checkpoint's levels, as the UNet is evaluated at them under the plan's solver."""
    return levels_for(plan.scheduler, levels)


def plan_schedule(plan: StepPlan, levels: NoiseLevels) -> SampleSchedule:
    """The noise levels that a pass goes through, of a checkpoint with these."""
    return make_schedule(plan.scheduler, plan.sigma_schedule, levels, plan.scheduled, plan.executed)


def evaluations(plan: StepPlan, schedule: SampleSchedule) -> int:
    """How often the UNet is evaluated."""
    return SOLVERS[plan.scheduler].evaluations(schedule.sigmas)


def sample(
    denoise: Denoise,
    plan: StepPlan,
    schedule: SampleSchedule,
    noise: Noise,
    clean: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Draw from nothing but noise, or over a picture, of which the first level decides what stays.

    Args:
        denoise: which also knows what to draw.
        steps: of the pass.
        course: of these steps.
        noise: fresh; drawn on the CPU, so that a seed means the same picture on every device.
        clean: the picture's latents; None: there is no picture.
        device: of the latents.
    """
    solver = SOLVERS[plan.scheduler]
    first = noise.first().to(device)
    latents = schedule.from_noise(first) if clean is None else schedule.from_picture(clean, first)
    between = (
        brownian(noise.seeds, noise.shape, schedule.whole)
        if solver.brownian
        else noise.step_noise()
    )
    eta = solver.eta if plan.eta is None else plan.eta
    return solver.solve(denoise, latents, schedule.sigmas, between, eta)
