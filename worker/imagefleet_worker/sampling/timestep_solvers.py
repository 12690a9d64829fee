"""DDIM, PLMS and UniPC: solvers that step through timesteps in A1111.

There they work on latents of unit variance and end at one of the lowest levels, not at 0. Here they
run in sigma space like the others, on the levels of those timesteps, and scale the latents to unit
variance at the end.
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
"""By the number of slopes, latest first; for steps of equal width, as in timesteps."""


def ddim(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """DDIM (arXiv:2010.02502, eq. 12): in sigma space, Euler's method with ancestral noise."""
    return _unit_variance(euler_ancestral(denoise, latents, sigmas, noise, eta), sigmas[-1])


def plms(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """Pseudo linear multistep (arXiv:2202.09778): DDIM steps along a mean of the last slopes.

    The first step has no previous slope and is a Heun step.
    """
    slopes: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        slopes = [(latents - denoise(latents, sigma)) / sigma, *slopes[:3]]
        width = sigma_next - sigma
        if len(slopes) == 1:
            predicted = latents + width * slopes[0]
            slope_next = (predicted - denoise(predicted, sigma_next)) / sigma_next
            latents = latents + width * (slopes[0] + slope_next) / 2
            continue
        for weight, slope in zip(_ADAMS_BASHFORTH[len(slopes)], slopes, strict=True):
            latents = latents + width * weight * slope
    return _unit_variance(latents, sigmas[-1])


def unipc(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """UniPC of order 3 with B(h) = h and clean latents as the model (arXiv:2302.04867, alg. 5-8).

    As with A1111's settings "bh1" and "lower order final", the first steps are of the order that
    the past predictions allow, the last ones of lower order, and the very last one is not
    corrected.
    """
    steps = len(sigmas) - 1
    past = [(sigmas[0].item(), denoise(latents, sigmas[0]))]
    for step, sigma in enumerate(sigmas[1:], start=1):
        order = min(_UNIPC_ORDER, step, steps + 1 - step)
        (start, clean), *older = past[:order]
        width = math.log(start / sigma.item())
        # The paper's r_i and D_i / r_i.
        positions = [math.log(start / level) / width for level, _ in older]
        differences = [
            (other - clean) / position
            for (_, other), position in zip(older, positions, strict=True)
        ]

        first_order = interpolate(clean, latents, sigma / start)
        weights = _unipc_weights(positions, width)
        latents = first_order + width * _weighted_sum(weights, differences)
        if step == steps:
            break
        clean_next = denoise(latents, sigma)
        weights = _unipc_weights([*positions, 1.0], width)
        latents = first_order + width * _weighted_sum(weights, [*differences, clean_next - clean])
        past = [(sigma.item(), clean_next), *past][:_UNIPC_ORDER]
    return _unit_variance(latents, sigmas[-1])


def _unipc_weights(positions: Sequence[float], width: float) -> list[float]:
    """The weights of the differences to the predictions at some positions, with B(h) = h = width.

    Args:
        positions: as a fraction of the step from its start: below 0, or 1 for its end.
        width: of the step, in log sigma.
    """
    if len(positions) == 1:
        return [0.5]  # At second order any solution is valid; this is the authors' choice.
    moments: list[float] = []
    phi = math.expm1(-width) / -width - 1
    for order in range(1, len(positions) + 1):
        moments.append(phi * math.factorial(order) / -width)
        phi = phi / -width - 1 / math.factorial(order + 1)
    powers = np.vander(positions, increasing=True).T
    return np.linalg.solve(powers, np.array(moments)).tolist()


def _weighted_sum(weights: Sequence[float], differences: Sequence[Tensor]) -> Tensor | float:
    return sum(weight * difference for weight, difference in zip(weights, differences, strict=True))


def _unit_variance(latents: Tensor, sigma: Tensor) -> Tensor:
    return latents / (sigma**2 + 1).sqrt()
