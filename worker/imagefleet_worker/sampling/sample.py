"""A diffusion pass: from noise, or from a picture's latents, to latents `(B, 4, H/8, W/8)`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule
from imagefleet_worker.sampling.noise import Noise, brownian
from imagefleet_worker.sampling.noise_levels import NoiseLevels
from imagefleet_worker.sampling.pass_schedule import Course, levels_for, make_course
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.steps import Denoise


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which steps a pass takes."""

    scheduler: SchedulerName
    sigma_schedule: SigmaSchedule
    asked: int
    """By the request."""
    scheduled: int
    """From pure noise to none."""
    executed: int | None
    """How many of them, from the end, where a picture is drawn over; None: all, from noise."""
    eta: float | None
    """None: the solver's own."""

    def counted(self) -> int:
        """What a prompt's schedule counts, as in A1111: two a step for solvers of second order."""
        return self.asked * (2 if SOLVERS[self.scheduler].second_order else 1)

    def seen(self, levels: NoiseLevels) -> NoiseLevels:
        """A checkpoint's levels, as the UNet is asked at them under this solver."""
        return levels_for(self.scheduler, levels)

    def course(self, levels: NoiseLevels) -> Course:
        """The noise levels that the pass goes through, of a checkpoint with these."""
        return make_course(
            self.scheduler, self.sigma_schedule, levels, self.scheduled, self.executed
        )

    def evaluations(self, course: Course) -> int:
        """How often the UNet is asked."""
        return SOLVERS[self.scheduler].evaluations(course.sigmas)


def draw(
    denoise: Denoise,
    steps: Steps,
    course: Course,
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
    solver = SOLVERS[steps.scheduler]
    first = noise.first().to(device)
    latents = course.from_noise(first) if clean is None else course.from_picture(clean, first)
    between = (
        brownian(noise.seeds, noise.shape, course.schedule)
        if solver.brownian
        else noise.step_noise()
    )
    eta = solver.eta if steps.eta is None else steps.eta
    return solver.solve(denoise, latents, course.sigmas, between, eta)
