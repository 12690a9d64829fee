"""Restart sampling (arXiv:2306.14878): Heun's method, repeating an interval of low levels."""

from itertools import pairwise

import torch
from torch import Tensor

from imagefleet_worker.sampling.schedules import karras
from imagefleet_worker.sampling.solvers import heun_step
from imagefleet_worker.sampling.steps import Denoise, StepNoise, add_noise

_MIN_STEPS = 20
_TWO_RESTARTS_FROM_STEPS = 36
_RESTART_STEPS = 9
_RESTART_SIGMA_MIN, _RESTART_SIGMA_MAX = 0.1, 2.0
"""The interval that is repeated, up to the nearest levels."""


def restart(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """Heun steps over `restart_steps`, with noise added at each restart."""
    previous: Tensor | None = None
    for sigma, sigma_next in restart_steps(sigmas):
        if previous is not None and previous < sigma:
            amount = (sigma**2 - previous**2).sqrt()
            latents = add_noise(latents, noise, previous, sigma, amount)
        latents = heun_step(denoise, latents, sigma, sigma_next)
        previous = sigma_next
    return latents


def restart_steps(sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The steps, as pairs of levels, into which A1111 turns a schedule.

    A schedule of fewer than 20 steps is unchanged. From 20 steps on, 9 are spent on one restart;
    from 36 on, a quarter on each of two. All levels then have Karras spacing, whatever the schedule
    was.
    """
    steps = len(sigmas) - 1
    if steps < _MIN_STEPS:
        return list(pairwise(sigmas))
    restarts, restart_length = (
        (2, steps // 4) if steps >= _TWO_RESTARTS_FROM_STEPS else (1, _RESTART_STEPS)
    )
    main = karras(sigmas[-2].item(), sigmas[0].item(), steps - restart_length * restarts)
    main = torch.cat([main, torch.zeros(1)]).to(sigmas.device)
    low, high = _nearest(main, _RESTART_SIGMA_MIN), _nearest(main, _RESTART_SIGMA_MAX)
    repeated: list[tuple[Tensor, Tensor]] = []
    if high < low:
        repeated = list(pairwise(karras(main[low].item(), main[high].item(), restart_length + 1)))
    return [*pairwise(main[: low + 1]), *repeated * restarts, *pairwise(main[low:])]


def _nearest(sigmas: Tensor, level: float) -> int:
    return int((sigmas - level).abs().argmin())
