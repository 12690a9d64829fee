"""Solvers equal their reference implementations step for step."""

from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName, SigmaSchedule
from imagefleet_worker.sampling.pass_schedule import levels_for, make_schedule
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.schedules import Spacing, karras, sigmas
from tests.unit.worker.sampling.references import REFERENCES
from tests.unit.worker.sampling.toys import (
    LEVELS,
    CountingDenoiser,
    one_cluster,
    one_cluster_solved,
    sequential_noise,
    two_clusters,
    unit_noise,
)

NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)
STOCHASTIC = [name for name in NAMES if SOLVERS[name].uses_eta]
ENDING_ABOVE_ZERO = karras(0.05, 14.0, 25)
"""Levels on which all solvers can run, also those by timesteps, with different results."""
ORDERS: dict[SchedulerName, int] = {
    "ddim": 1,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2m_sde_heun": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_3m_sde": 2,
    "dpmpp_sde": 2,
    "euler": 1,
    "euler_ancestral": 1,
    "heun": 2,
    "lms": 2,
    "unipc": 2,
}
"""Without noise. A multistep solver's first step is an Euler step, whose error remains."""


@pytest.mark.parametrize("steps", [2, 7, 36])
@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        (name, spacing)
        for name, spacing in product(NAMES, get_args(Spacing))
        if not SOLVERS[name].by_timesteps
    ],
)
def test_a_solver_takes_the_steps_of_its_reference(
    name: SchedulerName, spacing: Spacing, steps: int
) -> None:
    """In float64, so that only the algorithm can make a difference.

    Restart computes levels of its own, in float32 like all levels.
    """
    tolerance = 1e-6 if name == "restart" else 1e-9
    levels = sigmas(spacing, LEVELS, steps).double()
    start, eta = unit_noise().double() * levels[0], SOLVERS[name].eta
    ours = SOLVERS[name].solve(two_clusters, start, levels, sequential_noise(), eta)
    theirs = REFERENCES[name](two_clusters, start, levels, sequential_noise(), eta)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance * 10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_eta_scales_the_noise_that_is_added(name: SchedulerName, eta: float) -> None:
    start = unit_noise() * ENDING_ABOVE_ZERO[0]
    ours = SOLVERS[name].solve(two_clusters, start, ENDING_ABOVE_ZERO, sequential_noise(), eta)
    theirs = REFERENCES[name](two_clusters, start, ENDING_ABOVE_ZERO, sequential_noise(), eta)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("executed", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("name", NAMES)
def test_solvers_may_run_the_tail_of_a_schedule(name: SchedulerName, executed: int) -> None:
    """Multistep solvers have no history there, and start as they do at the first level."""
    schedule = make_schedule(name, "automatic", LEVELS, 20, executed)
    if len(schedule.sigmas) == 2 and SOLVERS[name].brownian:
        pytest.skip("k-diffusion cannot run a single step")
    start, eta = schedule.from_image(torch.ones(2, 4, 6, 8), unit_noise()), SOLVERS[name].eta
    ours = SOLVERS[name].solve(two_clusters, start, schedule.sigmas, sequential_noise(), eta)
    theirs = REFERENCES[name](two_clusters, start, schedule.sigmas, sequential_noise(), eta)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_other_solver_is_as_close_to_the_reference(name: SchedulerName) -> None:
    start = unit_noise() * ENDING_ABOVE_ZERO[0]
    reference = REFERENCES[name](two_clusters, start, ENDING_ABOVE_ZERO, sequential_noise(), 1.0)
    distances = {
        other: (entry.solve(two_clusters, start, ENDING_ABOVE_ZERO, sequential_noise(), 1.0))
        .sub(reference)
        .abs()
        .max()
        .item()
        for other, entry in SOLVERS.items()
    }
    assert distances.pop(name) < 1e-5
    assert min(distances.values()) > 1e-3, distances


@pytest.mark.parametrize("name", list(ORDERS))
def test_doubling_the_steps_reduces_the_error_by_the_order(
    name: SchedulerName,
) -> None:
    errors: list[float] = []
    for steps in (100, 200):
        levels = torch.linspace(1.0, -1.0, steps + 1, dtype=torch.float64).exp()
        start = unit_noise().double() * levels[0]
        end = SOLVERS[name].solve(one_cluster, start, levels, sequential_noise(), 0.0)
        exact = one_cluster_solved(start, levels[0], levels[-1])
        if SOLVERS[name].by_timesteps:
            exact = exact / (levels[-1] ** 2 + 1).sqrt()
        errors.append((end - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDERS[name], rel=0.15)


@pytest.mark.parametrize(
    ("steps", "executed"),
    [(1, None), (2, None), (3, None), (20, None), (36, None), (20, 1), (20, 2), (36, 20)],
)
@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_exactly(
    name: SchedulerName, steps: int, executed: int | None
) -> None:
    entry = SOLVERS[name]
    schedules = ("automatic",) if entry.by_timesteps else get_args(SigmaSchedule)
    for schedule in schedules:
        schedule = make_schedule(name, schedule, LEVELS, steps, executed)
        denoise = CountingDenoiser(two_clusters)
        entry.solve(denoise, unit_noise(), schedule.sigmas, sequential_noise(), entry.eta)
        assert denoise.calls == entry.evaluations(schedule.sigmas) > 0, schedule


@pytest.mark.parametrize("name", NAMES)
def test_solvers_do_not_modify_their_input(name: SchedulerName) -> None:
    start = unit_noise()
    SOLVERS[name].solve(two_clusters, start, ENDING_ABOVE_ZERO, sequential_noise(), 1.0)
    assert torch.equal(start, unit_noise())


@pytest.mark.parametrize("name", NAMES)
def test_solvers_do_not_use_the_global_generator(name: SchedulerName) -> None:
    state = torch.get_rng_state()
    ends = [
        SOLVERS[name].solve(two_clusters, unit_noise(), ENDING_ABOVE_ZERO, sequential_noise(), 1.0)
        for _ in range(2)
    ]
    assert torch.equal(*ends)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_latents_may_be_on_another_device_than_levels_and_noise(name: SchedulerName) -> None:
    """And no solver reads values of the latents, which the meta device does not have."""
    schedule, levels = make_schedule(name, "automatic", LEVELS, 20), levels_for(name, LEVELS)
    latents = schedule.from_noise(unit_noise().to("meta"))

    def denoise(latents: Tensor, sigma: Tensor) -> Tensor:
        return levels.clean(latents, levels.unet_input(latents, sigma).half(), sigma)

    end = SOLVERS[name].solve(denoise, latents, schedule.sigmas, sequential_noise(), 1.0)
    assert end.device.type == "meta"
    assert end.dtype == torch.float32
