"""Toy distributions whose optimal denoiser is known in closed form."""

import torch
from torch import Tensor

from imagefleet_worker.sampling.noise_levels import NoiseLevels
from imagefleet_worker.sampling.steps import Denoise, StepNoise

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = NoiseLevels.from_config(SD1)
SHAPE = (4, 6, 8)
SPREAD = 0.7


def unit_noise(seed: int = 0, pictures: int = 2) -> Tensor:
    return torch.randn((pictures, *SHAPE), generator=torch.Generator().manual_seed(seed))


def two_clusters(latents: Tensor, sigma: Tensor) -> Tensor:
    """The optimal denoiser if each number is 1.2 or -1.2 plus noise of standard deviation 0.5."""
    variance = 0.25 + sigma**2
    return (latents * 0.25 + 1.2 * sigma**2 * torch.tanh(1.2 * latents / variance)) / variance


def one_cluster(latents: Tensor, sigma: Tensor) -> Tensor:
    """The optimal denoiser if each number has mean 0 and standard deviation `SPREAD`."""
    return latents * (SPREAD**2 / (SPREAD**2 + sigma**2))


def one_cluster_solved(latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The exact solution of the probability flow ODE of `one_cluster`."""
    return latents * ((SPREAD**2 + sigma_next**2) / (SPREAD**2 + sigma**2)).sqrt()


def sequential_noise() -> StepNoise:
    """Returns the noise of seed 100 at the first call, of seed 101 at the second, and so on."""
    calls = 0

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return unit_noise(99 + calls).to(sigma.dtype)

    return noise


class CountingDenoiser:
    """A denoiser that counts its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.calls = 0

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.ndim == 0
        self.calls += 1
        return self.denoise(latents, sigma)
