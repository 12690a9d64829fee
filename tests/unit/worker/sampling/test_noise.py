"""Seeds: the same picture for the same seed, and A1111's variations of it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imagefleet_worker.sampling.noise import Noise
from imagefleet_worker.sampling.philox import PhiloxGenerator
from imagefleet_worker.sampling.seeds import RandomSource, Seeds

SHAPE = (4, 6, 8)
SEEDS = Seeds(seeds=(11, 12))
VARIED = replace(SEEDS, variation_seeds=(21, 22), variation_strength=0.3)
sources = pytest.mark.parametrize("rng", ["cpu", "gpu"])


def first_randn(seed: int, shape: tuple[int, ...] = SHAPE, rng: RandomSource = "cpu") -> Tensor:
    """The first random numbers of a seed."""
    if rng == "gpu":
        return PhiloxGenerator(seed).randn(shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@sources
def test_the_initial_noise_is_the_first_numbers_of_the_seeds_generator(rng: RandomSource) -> None:
    first = Noise(replace(SEEDS, rng=rng), SHAPE).first()
    assert first.shape == (2, *SHAPE)
    assert first.dtype == torch.float32
    assert torch.equal(first, torch.stack([first_randn(11, rng=rng), first_randn(12, rng=rng)]))


def test_steps_continue_with_the_numbers_of_the_same_generator() -> None:
    generator = torch.Generator().manual_seed(12)
    expected = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    noise = Noise(SEEDS, SHAPE)
    step, level = noise.step_noise(), torch.tensor(1.0)
    actual = [noise.first(), noise.next(), step(level, level)]
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours[1], theirs)


@sources
@pytest.mark.parametrize(
    "seeds",
    [SEEDS, VARIED, replace(VARIED, resize_from=(32, 80))],
)
def test_a_picture_has_the_same_noise_alone_and_in_a_batch(seeds: Seeds, rng: RandomSource) -> None:
    batch = Noise(replace(seeds, rng=rng), SHAPE)
    variation_seeds = seeds.variation_seeds and seeds.variation_seeds[1:]
    alone = Noise(replace(seeds, rng=rng, seeds=(12,), variation_seeds=variation_seeds), SHAPE)
    for _ in range(2):
        assert torch.equal(batch.first()[1:], alone.first())
        assert torch.equal(batch.next()[1:], alone.next())


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    noise = Noise(replace(VARIED, resize_from=(32, 80)), SHAPE)
    noise.first()
    noise.next()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_a_variation_interpolates_the_noise_column_by_column(strength: float) -> None:
    """Along a channel's column, because A1111 interpolates over dimension 1 of `(C, h, w)`."""
    seeds = replace(VARIED, variation_strength=strength)
    varied = Noise(seeds, SHAPE).first()[0].double()
    one, other = first_randn(11).double(), first_randn(21).double()
    for channel in range(4):
        for column in range(8):
            a, b = one[channel, :, column], other[channel, :, column]
            angle = torch.acos(a @ b / a.norm() / b.norm())
            expected = (
                torch.sin((1 - strength) * angle) * a + torch.sin(strength * angle) * b
            ) / torch.sin(angle)
            torch.testing.assert_close(varied[channel, :, column], expected, atol=1e-5, rtol=1e-5)


def test_variation_strengths_0_and_1_give_the_noise_of_the_two_seeds() -> None:
    none = Noise(replace(VARIED, variation_strength=0.0), SHAPE).first()
    assert torch.equal(none, Noise(SEEDS, SHAPE).first())
    full = Noise(replace(VARIED, variation_strength=1.0), SHAPE).first()
    expected = torch.stack([first_randn(21), first_randn(22)])
    torch.testing.assert_close(full, expected, atol=1e-5, rtol=1e-5)


def test_a_variation_towards_the_seed_itself_is_no_variation() -> None:
    """The noises have the same direction, for which spherical interpolation would be 0 / 0."""
    seeds = replace(VARIED, variation_seeds=SEEDS.seeds)
    assert torch.equal(Noise(seeds, SHAPE).first(), Noise(SEEDS, SHAPE).first())


def test_a_variation_does_not_change_the_noise_of_the_steps() -> None:
    varied, plain = Noise(VARIED, SHAPE), Noise(SEEDS, SHAPE)
    assert not torch.equal(varied.first(), plain.first())
    assert torch.equal(varied.next(), plain.next())


def test_noise_resized_from_a_smaller_picture_is_pasted_into_the_centre() -> None:
    first = Noise(replace(SEEDS, resize_from=(32, 16)), SHAPE).first()[0]
    expected = first_randn(11)
    expected[:, 2:4, 2:6] = first_randn(11, (4, 2, 4))
    assert torch.equal(first, expected)


def test_noise_resized_from_a_larger_picture_is_cropped_to_its_centre() -> None:
    first = Noise(replace(SEEDS, resize_from=(48, 80)), SHAPE).first()[0]
    expected = first_randn(11)
    expected[:, :, 1:7] = first_randn(11, (4, 10, 6))[:, 2:8, :]
    assert torch.equal(first, expected)


def test_an_odd_margin_is_cropped_as_in_a1111() -> None:
    """Its division rounds down, so a negative margin of a half crops a line on each side."""
    first = Noise(replace(SEEDS, resize_from=(64, 72)), SHAPE).first()[0]
    expected = first_randn(11)
    expected[:, :5, :] = first_randn(11, (4, 9, 8))[:, 2:7, :]
    assert torch.equal(first, expected)


def test_noise_resized_from_the_same_size_is_unchanged() -> None:
    same, plain = Noise(replace(SEEDS, resize_from=(64, 48)), SHAPE), Noise(SEEDS, SHAPE)
    assert torch.equal(same.first(), plain.first())
    assert torch.equal(same.next(), plain.next())
