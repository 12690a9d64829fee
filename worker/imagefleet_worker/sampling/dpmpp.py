"""DPM-Solver++ (arXiv:2211.01095) and its stochastic forms, in k-diffusion's variants."""

from itertools import pairwise

import torch
from torch import Tensor

from imagefleet_worker.sampling.steps import Denoise, StepNoise, ancestral, interpolate, renoised


def dpmpp_2s_ancestral(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2S), going too far down and back up with fresh noise."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        clean = denoise(latents, sigma)
        if down > 0:
            middle = (sigma * down).sqrt()
            clean = denoise(interpolate(clean, latents, middle / sigma), middle)
        latents = interpolate(clean, latents, down / sigma)
        latents = renoised(latents, noise, sigma, sigma_next, up)
    return latents


def dpmpp_sde(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(S) as an SDE: the clean latents halfway, noise in both halves."""
    for sigma, sigma_next in pairwise(sigmas):
        clean = denoise(latents, sigma)
        if sigma_next == 0:
            return clean
        # There and back through the logarithm as in k-diffusion: the last bit of a level decides
        # which point of the Brownian path is asked for.
        log, log_next = sigma.log(), sigma_next.log()
        start, middle, end = log.exp(), (log + (log_next - log) * 0.5).exp(), log_next.exp()

        down, up = ancestral(start, middle, eta)
        halfway = interpolate(clean, latents, down / start)
        halfway = renoised(halfway, noise, start, middle, up)
        clean = denoise(halfway, middle)

        down, up = ancestral(start, end, eta)
        latents = interpolate(clean, latents, down / start)
        latents = renoised(latents, noise, start, end, up)
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
        ahead = clean
        if previous is not None:
            clean_before, width_before = previous
            ahead = clean + (clean - clean_before) * (width / width_before / 2)
        latents = interpolate(ahead, latents, sigma_next / sigma)
        previous = clean, width
    return latents


def dpmpp_2m_sde(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2M) as an SDE, by the midpoint rule."""
    return _multistep_sde(denoise, latents, sigmas, noise, eta, order=2, midpoint=True)


def dpmpp_2m_sde_heun(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """DPM-Solver++(2M) as an SDE, by Heun's rule."""
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
    """Exponential integrator over log sigma, whose clean latents are a polynomial of the last few.

    Until there are enough of them the order is as high as they allow.
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
            latents = latents + _bend(clean, width, decay, past, midpoint)
        amount = sigma_next * (-torch.expm1(-2 * eta * width)).sqrt()
        latents = renoised(latents, noise, sigma, sigma_next, amount)
        past = [(clean, width), *past][: order - 1]
    return latents


def _bend(
    clean: Tensor, width: Tensor, decay: Tensor, past: list[tuple[Tensor, Tensor]], midpoint: bool
) -> Tensor:
    """What the first and second derivative of the clean latents add to a step.

    Args:
        clean: the guess at the start of the step.
        width: of the step, in log sigma.
        decay: how much of the latents the step forgets: its share is exp(-decay).
        past: the guess and width of the one or two steps before, latest first.
        midpoint: weigh the derivative by the midpoint rule.
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
