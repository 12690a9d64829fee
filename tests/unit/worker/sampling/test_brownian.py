"""Brownian paths: torchsde's, whatever is asked of them and when."""

from itertools import pairwise

import pytest
import torch
import torchsde
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName
from imagefleet_worker.sampling.brownian import brownian_path
from imagefleet_worker.sampling.noise import brownian
from imagefleet_worker.sampling.pass_schedule import make_sigmas
from imagefleet_worker.sampling.registry import SOLVERS
from imagefleet_worker.sampling.seeds import Seeds
from imagefleet_worker.sampling.steps import StepNoise
from tests.unit.worker.sampling.oracle import k_diffusion
from tests.unit.worker.sampling.toys import LEVELS, SHAPE, two_clusters, unit_noise

SEEDS = Seeds(seeds=(3, 2**32 - 1))
SIGMAS = make_sigmas("dpmpp_sde", "automatic", LEVELS, 20)
# A level's logarithm and back can be the last bit beyond the ends; torchsde mentions it.
beyond_the_ends = pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01]:UserWarning")


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def k_diffusions(sigmas: Tensor) -> StepNoise:
    low, high = sigmas[sigmas > 0].min(), sigmas.max()
    sampler = k_diffusion("sampling").BrownianTreeNoiseSampler
    return sampler(unit_noise(), low, high, seed=list(SEEDS.seeds))


@pytest.mark.parametrize("seed", [0, 3, 2**40])
def test_a_path_is_torchsdes(seed: int) -> None:
    tree = torchsde.BrownianTree(0.029167, torch.zeros(SHAPE), 14.614647, entropy=seed)
    path = brownian_path(seed, 0.029167, 14.614647, draw)
    times = [0.029167, 0.03, 0.5, 7.25, 7.321907, 14.614646, 14.614647]
    for before, after in pairwise(times):
        torch.testing.assert_close(
            (path(after) - path(before)).float(), tree(before, after), atol=5e-6, rtol=1e-5
        )


def test_a_path_does_not_depend_on_what_was_asked_before() -> None:
    asked, fresh = (brownian_path(5, 0.03, 14.0, draw) for _ in range(2))
    for time in torch.linspace(0.03, 14.0, 100).tolist():
        asked(time)
    assert torch.equal(asked(1.25), fresh(1.25))


def test_a_path_stays_where_it_is_beyond_its_ends() -> None:
    path = brownian_path(5, 1.0, 2.0, draw)
    assert torch.equal(path(2.1), path(2.0))
    assert torch.equal(path(0.9), torch.zeros(SHAPE, dtype=torch.float64))


@beyond_the_ends
def test_the_noise_of_a_step_is_that_of_k_diffusions_noise_sampler() -> None:
    ours, theirs = brownian(SEEDS, SHAPE, SIGMAS), k_diffusions(SIGMAS)
    for sigma, sigma_next in pairwise(SIGMAS[:-1]):
        noise = ours(sigma, sigma_next)
        assert noise.dtype == torch.float32
        torch.testing.assert_close(noise, theirs(sigma, sigma_next), atol=5e-5, rtol=1e-4)


@beyond_the_ends
@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_a_solver_with_brownian_noise_takes_the_steps_of_k_diffusion(name: SchedulerName) -> None:
    start = unit_noise() * SIGMAS[0]
    ours = SOLVERS[name].solve(two_clusters, start, SIGMAS, brownian(SEEDS, SHAPE, SIGMAS), 1.0)

    def model(latents: Tensor, sigma: Tensor) -> Tensor:
        return two_clusters(latents, sigma[0])

    theirs = getattr(k_diffusion("sampling"), f"sample_{name}")(
        model, start, SIGMAS, disable=True, noise_sampler=k_diffusions(SIGMAS)
    )
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("rng", ["cpu", "gpu"])
def test_noise_is_unit_and_two_halves_of_a_step_make_the_whole(rng: str) -> None:
    seeds = Seeds(seeds=(1,), rng="gpu" if rng == "gpu" else "cpu")
    noise = brownian(seeds, (4, 32, 32), SIGMAS)
    high, middle, low = (torch.tensor(each) for each in (9.0, 4.0, 2.0))
    upper, lower, whole = noise(high, middle), noise(middle, low), noise(high, low)
    for each in (upper, lower, whole):
        assert (each.std() - 1).abs() < 0.05
    together = (upper * (high - middle).sqrt() + lower * (middle - low).sqrt()) / (
        high - low
    ).sqrt()
    torch.testing.assert_close(together, whole, atol=1e-5, rtol=1e-5)


def test_the_two_sources_of_numbers_make_two_paths() -> None:
    by_cpu, by_gpu = (
        brownian(Seeds(seeds=(1,), rng=rng), SHAPE, SIGMAS)(SIGMAS[0], SIGMAS[1])
        for rng in ("cpu", "gpu")
    )
    assert (by_cpu - by_gpu).abs().max() > 0.1


@pytest.mark.parametrize("rng", ["cpu", "gpu"])
def test_a_picture_has_the_same_noise_alone_and_in_a_batch(rng: str) -> None:
    source = "gpu" if rng == "gpu" else "cpu"
    batch = brownian(Seeds(seeds=(1, 2), rng=source), SHAPE, SIGMAS)
    alone = brownian(Seeds(seeds=(2,), rng=source), SHAPE, SIGMAS)
    for sigma, sigma_next in pairwise(SIGMAS[:4]):
        assert torch.equal(batch(sigma, sigma_next)[1:], alone(sigma, sigma_next))
