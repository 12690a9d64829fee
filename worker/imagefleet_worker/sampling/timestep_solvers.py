"""DDIM, PLMS and UniPC: solvers that A1111 steps through timesteps.

They work on latents of unit variance and end at one of the lowest levels, not at 0. Ours run in
sigma space like the others, on the levels of those timesteps, and give the latents back at unit
variance as the last thing they do.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from imagefleet_worker.sampling.solvers import euler_ancestral
from imagefleet_worker.sampling.steps import Denoise, StepNoise, interpolate

_UNIPC_ORDER = 3
_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""By the number of slopes, the latest first; for steps of one width, as those of timesteps are."""


def ddim(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """DDIM (arXiv:2010.02502, eq. 12): in sigma space, Euler's step with ancestral noise."""
    return _unit_variance(euler_ancestral(denoise, latents, sigmas, noise, eta), sigmas[-1])


def plms(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """Pseudo linear multistep (arXiv:2202.09778): DDIM's step along a mean of the last slopes.

    The first step has no slope before it and is Heun's.
    """
    slopes: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        slopes = [(latents - denoise(latents, sigma)) / sigma, *slopes[:3]]
        width = sigma_next - sigma
        if len(slopes) == 1:
            guess = latents + width * slopes[0]
            ahead = (guess - denoise(guess, sigma_next)) / sigma_next
            latents = latents + width * (slopes[0] + ahead) / 2
            continue
        for weight, slope in zip(_ADAMS_BASHFORTH[len(slopes)], slopes, strict=True):
            latents = latents + width * weight * slope
    return _unit_variance(latents, sigmas[-1])


def unipc(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """UniPC of order 3 with B(h) = h and clean latents as the model (arXiv:2302.04867, alg. 5-8).

    The first steps are of the order that the past allows, the last ones of lower order and the
    very last one without correction: A1111's settings, "bh1" and "lower order final".
    """
    steps = len(sigmas) - 1
    past = [(sigmas[0].item(), denoise(latents, sigmas[0]))]
    for step, sigma in enumerate(sigmas[1:], start=1):
        order = min(_UNIPC_ORDER, step, steps + 1 - step)
        (start, clean), *older = past[:order]
        width = math.log(start / sigma.item())
        places = [math.log(start / at) / width for at, _ in older]
        bends = [(other - clean) / place for (_, other), place in zip(older, places, strict=True)]

        straight = interpolate(clean, latents, sigma / start)
        latents = straight + width * _weighted(_unipc_weights(places, width), bends)
        if step == steps:
            break
        guess = denoise(latents, sigma)
        weights = _unipc_weights([*places, 1.0], width)
        latents = straight + width * _weighted(weights, [*bends, guess - clean])
        past = [(sigma.item(), guess), *past][:_UNIPC_ORDER]
    return _unit_variance(latents, sigmas[-1])


def _unipc_weights(places: Sequence[float], width: float) -> list[float]:
    """What the differences to the guesses at some places count for, B(h) being the width h.

    Args:
        places: where, as a share of the step from its start: below 0, or 1 for its end.
        width: of the step, in log sigma.
    """
    if len(places) == 1:
        return [0.5]  # To second order any solution will do, and this is the authors' choice.
    moments: list[float] = []
    phi = math.expm1(-width) / -width - 1
    for order in range(1, len(places) + 1):
        moments.append(phi * math.factorial(order) / -width)
        phi = phi / -width - 1 / math.factorial(order + 1)
    powers = np.vander(places, increasing=True).T
    return np.linalg.solve(powers, np.array(moments)).tolist()


def _weighted(weights: Sequence[float], differences: Sequence[Tensor]) -> Tensor | float:
    return sum(w * each for w, each in zip(weights, differences, strict=True))


def _unit_variance(latents: Tensor, sigma: Tensor) -> Tensor:
    return latents / (sigma**2 + 1).sqrt()
