"""Brownian paths equal torchsde's, whichever points are queried in which order."""

from itertools import pairwise

import pytest
import torch
import torchsde
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName
from imagefleet_worker.sampling.brownian import brownian_path
from imagefleet_worker.sampling.noise import brownian_noise
from imagefleet_worker.sampling.pass_schedule import make_sigmas
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.seeds import Seeds
from imagefleet_worker.sampling.steps import StepNoise
from tests.unit.worker.sampling.oracle import k_diffusion
from tests.unit.worker.sampling.toys import LEVELS, SHAPE, two_clusters, unit_noise

SEEDS = Seeds(seeds=(3, 2**32 - 1))
SIGMAS = make_sigmas("dpmpp_sde", "automatic", LEVELS, 20)
# After a level's logarithm and back it may lie one bit beyond the ends, for which torchsde warns.
beyond_the_ends = pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01]:UserWarning")


def randn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def k_diffusion_noise(sigmas: Tensor) -> StepNoise:
    low, high = sigmas[sigmas > 0].min(), sigmas.max()
    sampler = k_diffusion("sampling").BrownianTreeNoiseSampler
    return sampler(unit_noise(), low, high, seed=list(SEEDS.seeds))


@pytest.mark.parametrize("seed", [0, 3, 2**40])
def test_a_path_equals_torchsdes(seed: int) -> None:
    tree = torchsde.BrownianTree(0.029167, torch.zeros(SHAPE), 14.614647, entropy=seed)
    path = brownian_path(seed, 0.029167, 14.614647, randn)
    times = [0.029167, 0.03, 0.5, 7.25, 7.321907, 14.614646, 14.614647]
    for before, after in pairwise(times):
        torch.testing.assert_close(
            (path(after) - path(before)).float(), tree(before, after), atol=5e-6, rtol=1e-5
        )


def test_a_path_does_not_depend_on_earlier_queries() -> None:
    queried, fresh = (brownian_path(5, 0.03, 14.0, randn) for _ in range(2))
    for time in torch.linspace(0.03, 14.0, 100).tolist():
        queried(time)
    assert torch.equal(queried(1.25), fresh(1.25))


def test_a_path_is_constant_beyond_its_ends() -> None:
    path = brownian_path(5, 1.0, 2.0, randn)
    assert torch.equal(path(2.1), path(2.0))
    assert torch.equal(path(0.9), torch.zeros(SHAPE, dtype=torch.float64))


@beyond_the_ends
def test_the_noise_of_a_step_equals_that_of_k_diffusions_noise_sampler() -> None:
    ours, theirs = brownian_noise(SEEDS, SHAPE, SIGMAS), k_diffusion_noise(SIGMAS)
    for sigma, sigma_next in pairwise(SIGMAS[:-1]):
        noise = ours(sigma, sigma_next)
        assert noise.dtype == torch.float32
        torch.testing.assert_close(noise, theirs(sigma, sigma_next), atol=5e-5, rtol=1e-4)


@beyond_the_ends
@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_a_solver_with_brownian_noise_takes_the_steps_of_k_diffusion(name: SchedulerName) -> None:
    start = unit_noise() * SIGMAS[0]
    ours = SOLVERS[name].solve(
        two_clusters, start, SIGMAS, brownian_noise(SEEDS, SHAPE, SIGMAS), 1.0
    )

    def model(latents: Tensor, sigma: Tensor) -> Tensor:
        return two_clusters(latents, sigma[0])

    theirs = getattr(k_diffusion("sampling"), f"sample_{name}")(
        model, start, SIGMAS, disable=True, noise_sampler=k_diffusion_noise(SIGMAS)
    )
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("rng", ["cpu", "gpu"])
def test_noise_is_unit_and_two_halves_of_a_step_add_up_to_the_whole(rng: str) -> None:
    seeds = Seeds(seeds=(1,), rng="gpu" if rng == "gpu" else "cpu")
    noise = brownian_noise(seeds, (4, 32, 32), SIGMAS)
    high, middle, low = (torch.tensor(each) for each in (9.0, 4.0, 2.0))
    upper, lower, whole = noise(high, middle), noise(middle, low), noise(high, low)
    for each in (upper, lower, whole):
        assert (each.std() - 1).abs() < 0.05
    together = (upper * (high - middle).sqrt() + lower * (middle - low).sqrt()) / (
        high - low
    ).sqrt()
    torch.testing.assert_close(together, whole, atol=1e-5, rtol=1e-5)


def test_cpu_and_gpu_random_numbers_make_different_paths() -> None:
    by_cpu, by_gpu = (
        brownian_noise(Seeds(seeds=(1,), rng=rng), SHAPE, SIGMAS)(SIGMAS[0], SIGMAS[1])
        for rng in ("cpu", "gpu")
    )
    assert (by_cpu - by_gpu).abs().max() > 0.1


@pytest.mark.parametrize("rng", ["cpu", "gpu"])
def test_a_picture_has_the_same_noise_alone_and_in_a_batch(rng: str) -> None:
    source = "gpu" if rng == "gpu" else "cpu"
    batch = brownian_noise(Seeds(seeds=(1, 2), rng=source), SHAPE, SIGMAS)
    alone = brownian_noise(Seeds(seeds=(2,), rng=source), SHAPE, SIGMAS)
    for sigma, sigma_next in pairwise(SIGMAS[:4]):
        assert torch.equal(batch(sigma, sigma_next)[1:], alone(sigma, sigma_next))
