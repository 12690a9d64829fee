"""Solvers: each name builds what it says, and finds the picture that a perfect network sees."""

import inspect
from itertools import product
from typing import get_args

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from imagefleet_shared.requests import NORMAL_SIGMAS_ONLY
from imagefleet_shared.samplers import SchedulerName, SigmaSchedule
from imagefleet_worker.models.architecture import packaged_config
from imagefleet_worker.schedulers import Solver, make_solver

pytestmark = [
    # diffusers' Heun and DPM2 hand tensors to numpy, which finds them old-fashioned.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

CPU = torch.device("cpu")
CONFIG = packaged_config("sd1", "scheduler")
CLEAN = torch.linspace(-3, 3, 4 * 64).reshape(1, 4, 8, 8)
"""Latents of an ordinary picture reach to 3 and beyond."""

CLASSES: dict[SchedulerName, str] = {
    "ddim": "DDIMScheduler",
    "dpm_2": "KDPM2DiscreteScheduler",
    "dpm_2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
FLAGS: dict[SigmaSchedule, str] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)
PAIRS: list[tuple[SchedulerName, SigmaSchedule]] = [
    (name, sigmas)
    for name, sigmas in product(NAMES, get_args(SigmaSchedule))
    if sigmas == "normal" or name not in NORMAL_SIGMAS_ONLY
]


def solver(
    name: SchedulerName,
    sigmas: SigmaSchedule = "normal",
    scheduled: int = 20,
    executed: int | None = None,
    seed: int = 1,
) -> Solver:
    return make_solver(
        name,
        sigmas,
        CONFIG,
        scheduled=scheduled,
        executed=scheduled if executed is None else executed,
        device=CPU,
        generators=[torch.Generator().manual_seed(seed)],
    )


def noise(seed: int = 0) -> Tensor:
    return torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(seed))


def solve(solver: Solver, latents: Tensor) -> Tensor:
    """Run the solver with a network that knows the clean latents."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    clean_share = torch.cumprod(1 - betas, 0)
    log_sigmas = ((1 - clean_share) / clean_share).sqrt().log().numpy()
    for timestep in solver.timesteps:
        inputs = solver.scaled(latents, timestep)
        # Some schedules fall between the training timesteps.
        sigma = float(np.exp(np.interp(float(timestep), np.arange(1000), log_sigmas)))
        share = 1 / (1 + sigma**2)
        predicted = (inputs - share**0.5 * CLEAN) / (1 - share) ** 0.5
        latents = solver.step(predicted, timestep, latents)
    return latents


@pytest.mark.parametrize("name", NAMES)
def test_a_name_builds_the_class_it_says(name: SchedulerName) -> None:
    assert type(solver(name).scheduler).__name__ == CLASSES[name]


def test_dpmpp_2m_sde_is_the_stochastic_variant() -> None:
    assert solver("dpmpp_2m_sde").scheduler.config["algorithm_type"] == "sde-dpmsolver++"
    assert solver("dpmpp_2m").scheduler.config["algorithm_type"] == "dpmsolver++"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigmas", list(FLAGS))
def test_requests_refuse_just_the_pairs_that_the_class_cannot_do(
    name: SchedulerName, sigmas: SigmaSchedule
) -> None:
    accepted = inspect.signature(getattr(diffusers, CLASSES[name]).__init__).parameters
    assert (FLAGS[sigmas] in accepted) == (name not in NORMAL_SIGMAS_ONLY)


@pytest.mark.parametrize(("name", "sigmas"), PAIRS)
def test_the_sigma_schedule_is_the_one_asked_for(
    name: SchedulerName, sigmas: SigmaSchedule
) -> None:
    config = solver(name, sigmas).scheduler.config
    assert {flag for flag in FLAGS.values() if config.get(flag)} == {
        flag for schedule, flag in FLAGS.items() if schedule == sigmas
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoints_noise_schedule_is_used(name: SchedulerName) -> None:
    config = solver(name).scheduler.config
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"):
        assert config[key] == CONFIG[key]


@pytest.mark.parametrize("scheduled", [2, 20, 150])
@pytest.mark.parametrize(("name", "sigmas"), PAIRS)
def test_a_perfect_network_leads_to_the_clean_latents(
    name: SchedulerName, sigmas: SigmaSchedule, scheduled: int
) -> None:
    """DDIM once clipped what it predicted to [-1, 1], which is no range of latents.

    DDIM's last step ends at the first noise level rather than at none, hence the tolerance; after
    two steps of 500 it is 0.146 off.
    """
    one = solver(name, sigmas, scheduled)
    assert (solve(one, one.initial(noise())) - CLEAN).abs().max() < 0.16


@pytest.mark.parametrize(("scheduled", "executed"), [(20, 7), (20, 1), (150, 2)])
@pytest.mark.parametrize(("name", "sigmas"), PAIRS)
def test_img2img_leads_there_too_from_the_middle(
    name: SchedulerName, sigmas: SigmaSchedule, scheduled: int, executed: int
) -> None:
    """LMS once began with the coefficients of four steps that it had not taken."""
    one = solver(name, sigmas, scheduled, executed)
    start = one.noised(CLEAN, noise())
    assert (start - CLEAN).abs().max() > 0.01
    assert (solve(one, start) - CLEAN).abs().max() < 0.14


@pytest.mark.parametrize("name", NAMES)
def test_img2img_runs_the_last_of_the_steps_scheduled(name: SchedulerName) -> None:
    whole, part = solver(name), solver(name, executed=5)
    assert torch.equal(part.timesteps, whole.timesteps[-len(part.timesteps) :])
    evaluations = 2 if name in ("heun", "dpm_2", "dpm_2_ancestral") else 1
    assert len(part.timesteps) in (5 * evaluations, 5 * evaluations - 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_means_one_picture(name: SchedulerName) -> None:
    first, again = (solve(one, one.initial(noise())) for one in (solver(name), solver(name)))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", NAMES)
def test_generators_are_given_to_the_solvers_that_add_noise(name: SchedulerName) -> None:
    """And a solver that takes one for nothing does no harm with it."""
    halfway = noise()
    ends: list[Tensor] = []
    for seed in (1, 2):
        one = solver(name, seed=seed)
        one.scaled(halfway, one.timesteps[0])
        ends.append(one.step(torch.zeros_like(halfway), one.timesteps[0], halfway * 10))
    adds_noise = name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2m_sde", "lcm")
    if name != "dpm_2_ancestral":  # Its first evaluation is half a step, and adds none yet.
        assert torch.equal(*ends) != adds_noise


def test_each_picture_of_a_batch_has_its_own_noise() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    batch = make_solver(
        "euler_ancestral",
        "normal",
        CONFIG,
        scheduled=20,
        executed=20,
        device=CPU,
        generators=generators,
    )
    latents = batch.initial(noise().repeat(2, 1, 1, 1))
    batch.scaled(latents, batch.timesteps[0])
    stepped = batch.step(torch.zeros_like(latents), batch.timesteps[0], latents)
    alone = solver("euler_ancestral", seed=2)
    latents = alone.initial(noise())
    alone.scaled(latents, alone.timesteps[0])
    expected = alone.step(torch.zeros_like(latents), alone.timesteps[0], latents)
    assert torch.equal(stepped[1:], expected)
