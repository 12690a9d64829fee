"""Sigma schedules equal k-diffusion's and A1111's."""

from typing import get_args

import pytest
import torch
from scipy import stats

from imagefleet_worker.sampling.noise_levels import ConsistencyLevels, NoiseLevels
from imagefleet_worker.sampling.schedules import Spacing, karras, sigmas
from tests.unit.worker.sampling.oracle import k_diffusion
from tests.unit.worker.sampling.toys import LEVELS, SD1

STEPS = [1, 2, 7, 20, 50]
ENDS = (LEVELS.sigma_min, LEVELS.sigma_max)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)


@pytest.mark.parametrize("steps", STEPS)
def test_karras_and_exponential_are_k_diffusions(steps: int) -> None:
    theirs = k_diffusion("sampling")
    assert torch.equal(sigmas("karras", LEVELS, steps), theirs.get_sigmas_karras(steps, *ENDS))
    exponential = sigmas("exponential", LEVELS, steps)
    assert torch.equal(exponential, theirs.get_sigmas_exponential(steps, *ENDS))
    assert torch.equal(karras(0.1, 2.0, 5), theirs.get_sigmas_karras(5, 0.1, 2.0)[:-1])


@pytest.mark.parametrize("steps", STEPS)
def test_normal_and_sgm_uniform_are_even_in_timesteps(steps: int) -> None:
    levels = k_diffusion("external").DiscreteSchedule(LEVELS.sigmas, quantize=False)
    torch.testing.assert_close(sigmas("normal", LEVELS, steps), levels.get_sigmas(steps))
    without_last = levels.t_to_sigma(torch.linspace(999, 0, steps + 1)[:-1])
    torch.testing.assert_close(sigmas("sgm_uniform", LEVELS, steps)[:-1], without_last)


@pytest.mark.parametrize("steps", STEPS)
def test_beta_takes_the_quantiles_between_the_lowest_and_the_highest_sigma(steps: int) -> None:
    low, high = ENDS
    quantiles = [
        float(stats.beta.ppf(1 - step / max(steps - 1, 1), 0.6, 0.6)) for step in range(steps)
    ]
    expected = torch.tensor([low + quantile * (high - low) for quantile in quantiles] + [0.0])
    torch.testing.assert_close(sigmas("beta", LEVELS, steps), expected)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "levels",
    [
        LEVELS,
        ConsistencyLevels.from_levels(LEVELS),
        NoiseLevels.from_config(SD1 | {"rescale_betas_zero_snr": True}),
    ],
)
def test_every_schedule_falls_from_the_highest_level_to_zero(
    spacing: Spacing, levels: NoiseLevels, steps: int
) -> None:
    spaced = sigmas(spacing, levels, steps)
    assert spaced.shape == (steps + 1,)
    assert spaced.dtype == torch.float32
    assert spaced[0].item() == pytest.approx(levels.sigma_max, rel=1e-5)
    assert spaced[-1] == 0
    assert (spaced.diff() < 0).all()
    if spacing != "sgm_uniform" and steps > 1:
        assert spaced[-2].item() == pytest.approx(levels.sigma_min, rel=1e-3)


def test_lcm_in_four_steps_has_the_levels_that_a1111_gives_it() -> None:
    """Timesteps 999, 672 1/3, 345 2/3 and 19, interpolated between every twentieth."""
    logs = LEVELS.sigmas.log()

    def between(low: int, fraction: float) -> float:
        return ((1 - fraction) * logs[low] + fraction * logs[low + 20]).exp().item()

    third = 326 + 2 / 3
    expected = [
        *(LEVELS.sigma_max, between(659, (999 - third - 659) / 20)),
        *(between(339, (999 - 2 * third - 339) / 20), LEVELS.sigmas[19].item(), 0.0),
    ]
    spaced = sigmas("normal", ConsistencyLevels.from_levels(LEVELS), 4)
    torch.testing.assert_close(spaced, torch.tensor(expected))
