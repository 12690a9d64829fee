"""A sampling pass: from noise or from an image's latents to latents `(B, 4, H/8, W/8)`."""

import torch
from torch import Tensor

from imagefleet_worker.sampling.noise import Noise, brownian_noise
from imagefleet_worker.sampling.noise_levels import NoiseLevels
from imagefleet_worker.sampling.pass_schedule import SampleSchedule, levels_for, make_schedule
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.step_plan import StepPlan
from imagefleet_worker.sampling.steps import Denoise


def schedule_steps(plan: StepPlan) -> int:
    """The number of steps that prompt schedules refer to.

    As in A1111, second-order solvers count two per requested step.
    """
    return plan.requested * (2 if SOLVERS[plan.scheduler].second_order else 1)


def model_levels(plan: StepPlan, levels: NoiseLevels) -> NoiseLevels:
    """The levels at which the UNet is evaluated with the plan's solver."""
    return levels_for(plan.scheduler, levels)


def plan_schedule(plan: StepPlan, levels: NoiseLevels) -> SampleSchedule:
    """The schedule of a pass, for a checkpoint trained on these levels."""
    return make_schedule(plan.scheduler, plan.sigma_schedule, levels, plan.scheduled, plan.executed)


def evaluations(plan: StepPlan, schedule: SampleSchedule) -> int:
    """The number of UNet evaluations of a pass."""
    return SOLVERS[plan.scheduler].evaluations(schedule.sigmas)


def sample(
    denoise: Denoise,
    plan: StepPlan,
    schedule: SampleSchedule,
    noise: Noise,
    clean: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Run the solver of a pass, from pure noise or from an image's noised latents.

    Args:
        denoise: predicts clean latents.
        plan: the steps of the pass.
        schedule: the sigmas of the plan.
        noise: unused so far; sampled on the CPU, so that a seed means the same image on every
            device.
        clean: the image's latents; None: text-to-image.
        device: of the latents.
    """
    solver = SOLVERS[plan.scheduler]
    initial = noise.first().to(device)
    latents = schedule.from_noise(initial) if clean is None else schedule.from_image(clean, initial)
    step_noise = (
        brownian_noise(noise.seeds, noise.shape, schedule.full_sigmas)
        if solver.brownian
        else noise.step_noise()
    )
    eta = solver.eta if plan.eta is None else plan.eta
    return solver.solve(denoise, latents, schedule.sigmas, step_noise, eta)
