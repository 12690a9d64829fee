"""Restart sampling (arXiv:2306.14878): Heun's method that goes through the low levels again."""

from itertools import pairwise

import torch
from torch import Tensor

from imagefleet_worker.sampling.schedules import karras
from imagefleet_worker.sampling.solvers import heun_step
from imagefleet_worker.sampling.steps import Denoise, StepNoise, renoised

_FEWEST_STEPS = 20
_TWICE_FROM_STEPS = 36
_RESTART_STEPS = 9
_BACK_FROM, _BACK_TO = 0.1, 2.0
"""Near which level a restart begins, and near which it ends."""


def restart(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """Heun's steps of `restart_steps`, with the noise between them that a restart needs."""
    last: Tensor | None = None
    for sigma, sigma_next in restart_steps(sigmas):
        if last is not None and last < sigma:
            latents = renoised(latents, noise, last, sigma, (sigma**2 - last**2).sqrt())
        latents = heun_step(denoise, latents, sigma, sigma_next)
        last = sigma_next
    return latents


def restart_steps(sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The steps, from level to level, that A1111 makes of a schedule.

    Fewer than 20 are made as they are. Of 20 and more, 9 are spent on one restart; of 36 and more,
    a quarter on each of two. All of them are spaced as Karras's then, whatever the schedule was.
    """
    steps = len(sigmas) - 1
    if steps < _FEWEST_STEPS:
        return list(pairwise(sigmas))
    times, each = (2, steps // 4) if steps >= _TWICE_FROM_STEPS else (1, _RESTART_STEPS)
    main = karras(sigmas[-2].item(), sigmas[0].item(), steps - each * times)
    main = torch.cat([main, torch.zeros(1)]).to(sigmas.device)
    low, high = _nearest(main, _BACK_FROM), _nearest(main, _BACK_TO)
    again: list[tuple[Tensor, Tensor]] = []
    if high < low:
        again = list(pairwise(karras(main[low].item(), main[high].item(), each + 1)))
    return [*pairwise(main[: low + 1]), *again * times, *pairwise(main[low:])]


def _nearest(sigmas: Tensor, level: float) -> int:
    return int((sigmas - level).abs().argmin())
