"""DPM-Solver++ (arXiv:2211.01095) and its stochastic forms, in k-diffusion's variants."""

from itertools import pairwise

import torch
from torch import Tensor

from imagefleet_worker.sampling.steps import Denoise, StepNoise, add_noise, ancestral, interpolate


def dpmpp_2s_ancestral(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2S) with ancestral noise."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        clean = denoise(latents, sigma)
        if down > 0:
            middle = (sigma * down).sqrt()
            clean = denoise(interpolate(clean, latents, middle / sigma), middle)
        latents = interpolate(clean, latents, down / sigma)
        latents = add_noise(latents, noise, sigma, sigma_next, up)
    return latents


def dpmpp_sde(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(S) as an SDE: clean latents predicted halfway, noise added in both halves."""
    for sigma, sigma_next in pairwise(sigmas):
        clean = denoise(latents, sigma)
        if sigma_next == 0:
            return clean
        # To the logarithm and back, as in k-diffusion: the last bit of a level decides which point
        # of the Brownian path is sampled.
        log, log_next = sigma.log(), sigma_next.log()
        start, middle, end = log.exp(), (log + (log_next - log) * 0.5).exp(), log_next.exp()

        down, up = ancestral(start, middle, eta)
        halfway = interpolate(clean, latents, down / start)
        halfway = add_noise(halfway, noise, start, middle, up)
        clean = denoise(halfway, middle)

        down, up = ancestral(start, end, eta)
        latents = interpolate(clean, latents, down / start)
        latents = add_noise(latents, noise, start, end, up)
    return latents


def dpmpp_2m(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2M)."""
    previous: tuple[Tensor, Tensor] | None = None
    for sigma, sigma_next in pairwise(sigmas):
        clean = denoise(latents, sigma)
        if sigma_next == 0:
            return clean
        width = (sigma / sigma_next).log()
        extrapolated = clean
        if previous is not None:
            clean_before, width_before = previous
            extrapolated = clean + (clean - clean_before) * (width / width_before / 2)
        latents = interpolate(extrapolated, latents, sigma_next / sigma)
        previous = clean, width
    return latents


def dpmpp_2m_sde(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2M) as an SDE, with the midpoint rule."""
    return _multistep_sde(denoise, latents, sigmas, noise, eta, order=2, midpoint=True)


def dpmpp_2m_sde_heun(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2M) as an SDE, with Heun's rule."""
    return _multistep_sde(denoise, latents, sigmas, noise, eta, order=2, midpoint=False)


def dpmpp_3m_sde(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(3M) as an SDE."""
    return _multistep_sde(denoise, latents, sigmas, noise, eta, order=3, midpoint=False)


def _multistep_sde(
    denoise: Denoise,
    latents: Tensor,
    sigmas: Tensor,
    noise: StepNoise,
    eta: float,
    *,
    order: int,
    midpoint: bool,
) -> Tensor:
    """Exponential integrator over log sigma, with a polynomial through the last predictions.

    The first steps have a lower order, as there are fewer predictions.
    """
    past: list[tuple[Tensor, Tensor]] = []
    for sigma, sigma_next in pairwise(sigmas):
        clean = denoise(latents, sigma)
        if sigma_next == 0:
            return clean
        width = sigma.log() - sigma_next.log()
        decay = width * (1 + eta)
        latents = interpolate(clean, latents, (-decay).exp())
        if past:
            latents = latents + _derivative_terms(clean, width, decay, past, midpoint)
        amount = sigma_next * (-torch.expm1(-2 * eta * width)).sqrt()
        latents = add_noise(latents, noise, sigma, sigma_next, amount)
        past = [(clean, width), *past][: order - 1]
    return latents


def _derivative_terms(
    clean: Tensor, width: Tensor, decay: Tensor, past: list[tuple[Tensor, Tensor]], midpoint: bool
) -> Tensor:
    """The terms of a step from the first and second derivatives of the clean latents.

    Args:
        clean: the prediction at the start of the step.
        width: of the step, in log sigma.
        decay: of the latents over the step, whose weight is exp(-decay).
        past: prediction and width of the previous one or two steps, latest first.
        midpoint: weight the derivative by the midpoint rule.
    """
    clean_1, width_1 = past[0]
    near = (clean - clean_1) * (width / width_1)
    phi_2 = torch.expm1(-decay) / decay + 1
    if midpoint:
        return near * (-torch.expm1(-decay) / 2)
    if len(past) == 1:
        return near * phi_2
    clean_2, width_2 = past[1]
    far = (clean_1 - clean_2) * (width / width_2)
    span = (width_1 + width_2) / width
    first = near + (near - far) * (width_1 / width / span)
    second = (near - far) / span
    phi_3 = phi_2 / decay - 0.5
    return first * phi_2 - second * phi_3
