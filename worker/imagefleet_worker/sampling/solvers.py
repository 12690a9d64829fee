"""Euler, Heun and DPM2, their ancestral variants, LMS and LCM.

These are k-diffusion's algorithms as A1111 runs them, without churn.
"""

from itertools import pairwise

from torch import Tensor

from imagefleet_worker.sampling.steps import Denoise, StepNoise, add_noise, ancestral, interpolate

_LMS_ORDER = 4


def euler(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """Euler's method (arXiv:2206.00364, algorithm 1 without its correction)."""
    for sigma, sigma_next in pairwise(sigmas):
        latents = interpolate(denoise(latents, sigma), latents, sigma_next / sigma)
    return latents


def euler_ancestral(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """Euler's method with ancestral noise: step below the next level, then add noise up to it."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        latents = interpolate(denoise(latents, sigma), latents, down / sigma)
        latents = add_noise(latents, noise, sigma, sigma_next, up)
    return latents


def heun(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """Heun's method (arXiv:2206.00364, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        latents = heun_step(denoise, latents, sigma, sigma_next)
    return latents


def heun_step(denoise: Denoise, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """A step along the mean of the slopes at both ends; to level 0, an Euler step."""
    slope = (latents - denoise(latents, sigma)) / sigma
    predicted = latents + slope * (sigma_next - sigma)
    if sigma_next == 0:
        return predicted
    slope_next = (predicted - denoise(predicted, sigma_next)) / sigma_next
    return latents + (slope + slope_next) / 2 * (sigma_next - sigma)


def dpm_2(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver-2 (arXiv:2206.00927): the slope halfway in log sigma."""
    for sigma, sigma_next in pairwise(sigmas):
        latents = _midpoint_step(denoise, latents, sigma, sigma_next)
    return latents


def dpm_2_ancestral(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver-2 with ancestral noise."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        latents = _midpoint_step(denoise, latents, sigma, down)
        latents = add_noise(latents, noise, sigma, sigma_next, up)
    return latents


def _midpoint_step(denoise: Denoise, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    clean = denoise(latents, sigma)
    if sigma_next == 0:
        return clean
    middle = (sigma * sigma_next).sqrt()
    halfway = interpolate(clean, latents, middle / sigma)
    slope = (halfway - denoise(halfway, middle)) / middle
    return latents + slope * (sigma_next - sigma)


def lms(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """Adams and Bashforth's linear multistep method, of order 4 once it has four slopes."""
    slopes: list[Tensor] = []
    for step, sigma in enumerate(sigmas[:-1]):
        slopes = [(latents - denoise(latents, sigma)) / sigma, *slopes[: _LMS_ORDER - 1]]
        latest_first = sigmas[: step + 1].tolist()[: -len(slopes) - 1 : -1]
        weights = _lms_weights(latest_first, sigmas[step + 1].item())
        for weight, slope in zip(weights, slopes, strict=True):
            latents = latents + weight * slope
    return latents


def _lms_weights(nodes: list[float], end: float) -> list[float]:
    """The integrals, from the first node to the end, of the nodes' Lagrange polynomials.

    Their degree is at most 3, for which Simpson's rule is exact.
    """
    start = nodes[0]

    def polynomial(node: float, x: float) -> float:
        product = 1.0
        for other in nodes:
            if other != node:
                product *= (x - other) / (node - other)
        return product

    return [
        (polynomial(node, start) + 4 * polynomial(node, (start + end) / 2) + polynomial(node, end))
        * ((end - start) / 6)
        for node in nodes
    ]


def lcm(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    """Multistep consistency sampling (arXiv:2303.01469, algorithm 1), for `ConsistencyLevels`."""
    for sigma, sigma_next in pairwise(sigmas):
        latents = add_noise(denoise(latents, sigma), noise, sigma, sigma_next, sigma_next)
    return latents
