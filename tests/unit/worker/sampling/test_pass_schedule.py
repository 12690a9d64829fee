"""Sample schedules: the sigmas of a pass and the latents it starts from, as in A1111."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from imagefleet_shared.samplers import OWN_TIMESTEPS, SchedulerName
from imagefleet_worker.sampling.pass_schedule import levels_for, make_schedule, make_sigmas, tail
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.schedules import sigmas
from tests.unit.worker.sampling.references import UNIPC, diffusers_scheduler
from tests.unit.worker.sampling.toys import LEVELS, SD1, sequential_noise, two_clusters, unit_noise

NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)
BY_TIMESTEPS = [name for name in NAMES if SOLVERS[name].by_timesteps]
IN_SIGMAS = [name for name in NAMES if not SOLVERS[name].by_timesteps]
AUTOMATIC = {
    "karras": {"dpm_2", "dpm_2_ancestral", "dpmpp_2m", "dpmpp_2s_ancestral", "dpmpp_sde"}
    | {"restart"},
    "exponential": {"dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"},
}
DISCARDING = {"dpm_2", "dpm_2_ancestral", "dpmpp_3m_sde"}


def timesteps(levels: Tensor) -> list[float]:
    return [round(each, 2) for each in LEVELS.timestep(levels).tolist()]


def epsilon(latents: Tensor, timestep: int) -> Tensor:
    """What a UNet would predict for latents of unit variance."""
    sigma = LEVELS.sigmas[timestep]
    in_sigmas = latents * (sigma**2 + 1).sqrt()
    return (in_sigmas - two_clusters(in_sigmas, sigma)) / sigma


@pytest.mark.parametrize("name", IN_SIGMAS)
def test_automatic_is_a1111s_choice(name: SchedulerName) -> None:
    chosen = [spacing for spacing, names in AUTOMATIC.items() if name in names] or ["normal"]
    assert SOLVERS[name].automatic == chosen[0]
    automatic = make_sigmas(name, "automatic", LEVELS, 20)
    assert torch.equal(automatic, make_sigmas(name, SOLVERS[name].automatic, LEVELS, 20))


@pytest.mark.parametrize("name", IN_SIGMAS)
def test_some_solvers_discard_the_lowest_level(name: SchedulerName) -> None:
    spaced = make_sigmas(name, "karras", LEVELS, 20)
    assert len(spaced) == 21
    assert spaced[-1] == 0
    assert SOLVERS[name].discards_next_to_last == (name in DISCARDING)
    lowest = levels_for(name, LEVELS).sigma_min
    if name in DISCARDING:
        assert torch.equal(spaced[:-1], sigmas("karras", LEVELS, 21)[:-2])
    else:
        assert spaced[-2].item() == pytest.approx(lowest, rel=1e-3)


@pytest.mark.parametrize("name", ["ddim", "plms"])
@pytest.mark.parametrize(
    ("steps", "first", "second", "count"), [(20, 951, 901, 20), (30, 991, 958, 31), (1, 501, 1, 2)]
)
def test_timesteps_are_evenly_spaced_by_a_whole_number(
    name: SchedulerName, steps: int, first: int, second: int, count: int
) -> None:
    spaced = timesteps(make_sigmas(name, "automatic", LEVELS, steps))
    assert (spaced[0], spaced[1], spaced[-1], len(spaced)) == (first, second, 1, count)


def test_steps_are_limited_by_the_number_of_timesteps() -> None:
    assert len(make_sigmas("ddim", "automatic", LEVELS, 3000)) == 1000


def test_unipc_spaces_its_timesteps_over_all_of_them() -> None:
    spaced = timesteps(make_sigmas("unipc", "automatic", LEVELS, 20))
    expected = [999 * (1 - step / 20) for step in range(21)]
    # Levels between two timesteps equal A1111's; converting them back is slightly inexact.
    assert spaced == pytest.approx(expected, abs=0.01)


def test_requests_refuse_sigma_schedules_for_exactly_the_solvers_by_timesteps() -> None:
    assert sorted(OWN_TIMESTEPS) == BY_TIMESTEPS
    for name in OWN_TIMESTEPS:
        with pytest.raises(AssertionError):
            make_sigmas(name, "karras", LEVELS, 20)


@pytest.mark.parametrize("name", NAMES)
def test_only_lcm_uses_other_levels(name: SchedulerName) -> None:
    assert (levels_for(name, LEVELS) is LEVELS) == (name != "lcm")


@pytest.mark.parametrize("name", IN_SIGMAS)
def test_image_to_image_runs_the_last_steps(name: SchedulerName) -> None:
    clean, noise = unit_noise(1), unit_noise(2)
    schedule = make_schedule(name, "automatic", LEVELS, 20, 12)
    assert torch.equal(schedule.sigmas, make_sigmas(name, "automatic", LEVELS, 20)[-13:])
    assert torch.equal(schedule.sigmas, tail(schedule.full_sigmas, 12))
    assert torch.equal(schedule.from_image(clean, noise), clean + schedule.sigmas[0] * noise)


@pytest.mark.parametrize("name", NAMES)
def test_text_to_image_runs_the_full_schedule(name: SchedulerName) -> None:
    schedule, noise = make_schedule(name, "automatic", LEVELS, 20), unit_noise()
    assert torch.equal(schedule.sigmas, schedule.full_sigmas)
    unet_input = levels_for(name, LEVELS).unet_input(schedule.from_noise(noise), schedule.sigmas[0])
    if name in BY_TIMESTEPS:
        torch.testing.assert_close(unet_input, noise)
    else:
        torch.testing.assert_close(schedule.from_noise(noise), noise * schedule.sigmas[0])


@pytest.mark.parametrize(
    ("name", "executed", "noised", "start", "steps"),
    [
        ("ddim", 12, 551, 501, 10),
        ("plms", 12, 551, 501, 10),
        ("unipc", 12, 551, 501, 11),
        ("ddim", 2, 51, 51, 1),
        ("ddim", 1, 1, 51, 1),
        ("unipc", 1, 1, 1, 1),
    ],
)
def test_solvers_by_timesteps_noise_an_image_to_one_level_above_the_start(
    name: SchedulerName, executed: int, noised: int, start: int, steps: int
) -> None:
    """As in A1111, see `make_schedule`. The latents have unit variance, as its solvers expect."""
    schedule = make_schedule(name, "automatic", LEVELS, 20, executed)
    assert timesteps(schedule.sigmas)[0] == pytest.approx(start, abs=0.01)
    assert len(schedule.sigmas) - 1 == steps
    alpha_bar = 1 / (1 + LEVELS.sigmas[noised] ** 2)
    clean, noise = unit_noise(1), unit_noise(2)
    expected = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    unet_input = LEVELS.unet_input(schedule.from_image(clean, noise), schedule.sigmas[0])
    torch.testing.assert_close(unet_input, expected, atol=5e-6, rtol=1e-5)


def test_ddim_equals_diffusers_except_for_the_step_to_zero() -> None:
    """A1111 does not run that step."""
    theirs, noise = (
        diffusers_scheduler("DDIMScheduler", SD1 | {"steps_offset": 1, "clip_sample": False}),
        unit_noise(),
    )
    theirs.set_timesteps(20)
    latents = noise
    for timestep in theirs.timesteps[:-1].tolist():
        predicted = epsilon(latents, timestep)
        latents = theirs.step(predicted, timestep, latents, return_dict=False)[0]
    schedule = make_schedule("ddim", "automatic", LEVELS, 20)
    start = schedule.from_noise(noise)
    ours = SOLVERS["ddim"].solve(two_clusters, start, schedule.sigmas, sequential_noise(), 0.0)
    torch.testing.assert_close(ours, latents, atol=1e-5, rtol=1e-5)


def test_plms_equals_diffusers_except_for_the_step_to_zero() -> None:
    theirs, noise = (
        diffusers_scheduler("PNDMScheduler", SD1 | {"steps_offset": 1, "skip_prk_steps": True}),
        unit_noise(),
    )
    theirs.set_timesteps(20)
    latents = noise
    for timestep in theirs.timesteps[:-1].tolist():
        predicted = epsilon(latents, timestep)
        latents = theirs.step(predicted, timestep, latents, return_dict=False)[0]
    schedule = make_schedule("plms", "automatic", LEVELS, 20)
    start = schedule.from_noise(noise)
    ours = SOLVERS["plms"].solve(two_clusters, start, schedule.sigmas, sequential_noise(), 0.0)
    torch.testing.assert_close(ours, latents, atol=1e-5, rtol=1e-5)


def test_unipc_equals_diffusers_where_its_timesteps_are_whole() -> None:
    """They are for 27 steps, which A1111 runs for 26; diffusers rounds fractional timesteps."""
    theirs = diffusers_scheduler("UniPCMultistepScheduler", UNIPC)
    theirs.set_timesteps(27)
    latents = noise = unit_noise()
    for timestep in theirs.timesteps:
        predicted = epsilon(latents, int(timestep))
        latents = theirs.step(predicted, timestep, latents, return_dict=False)[0]
    schedule = make_schedule("unipc", "automatic", LEVELS, 26)
    start = schedule.from_noise(noise)
    ours = SOLVERS["unipc"].solve(two_clusters, start, schedule.sigmas, sequential_noise(), 0.0)
    torch.testing.assert_close(ours, latents, atol=1e-5, rtol=1e-5)
