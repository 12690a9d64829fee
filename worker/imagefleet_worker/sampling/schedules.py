"""Sigma schedules: the spacing of a pass's noise levels."""

import math
from typing import Literal, assert_never

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from imagefleet_worker.sampling.noise_levels import NoiseLevels

Spacing = Literal["normal", "karras", "exponential", "beta", "sgm_uniform"]

_BETA_SHAPE = 0.6


def sigmas(spacing: Spacing, levels: NoiseLevels, steps: int) -> Tensor:
    """`(steps + 1,)` float32 on the CPU, descending from the highest level to 0.

    Args:
        spacing: normal: even in timesteps, both ends included (A1111's "Uniform" and "Normal");
            sgm_uniform: even in timesteps, without the lowest level; karras: arXiv:2206.00364,
            eq. 5, rho 7; exponential: even in log sigma; beta: by the quantiles of a beta
            distribution, as A1111 implements arXiv:2407.12173: in sigma, not in timesteps.
        levels: the schedule runs from their highest to their lowest level, then to 0.
        steps: at least 1.
    """
    low, high = levels.sigma_min, levels.sigma_max
    match spacing:
        case "normal":
            spaced = levels.sigma(torch.linspace(*_ends(levels), steps))
        case "sgm_uniform":
            spaced = levels.sigma(torch.linspace(*_ends(levels), steps + 1)[:-1])
        case "karras":
            spaced = karras(low, high, steps)
        case "exponential":
            spaced = torch.linspace(math.log(high), math.log(low), steps).exp()
        case "beta":
            quantiles = betaincinv(_BETA_SHAPE, _BETA_SHAPE, 1 - np.linspace(0, 1, steps))
            spaced = torch.from_numpy(low + quantiles * (high - low)).float()
        case _:
            assert_never(spacing)
    return torch.cat([spaced, torch.zeros(1)])


def karras(low: float, high: float, count: int) -> Tensor:
    """`(count,)` levels from `high` to `low`, even in the 7th root (arXiv:2206.00364, eq. 5)."""
    ramp = torch.linspace(0, 1, count)
    first, last = high ** (1 / 7), low ** (1 / 7)
    return (first + ramp * (last - first)) ** 7


def _ends(levels: NoiseLevels) -> tuple[float, float]:
    """The last and the first timestep."""
    return levels.timestep(levels.sigmas[-1]).item(), levels.timestep(levels.sigmas[0]).item()
