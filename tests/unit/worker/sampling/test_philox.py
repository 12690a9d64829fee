"""CUDA's normal numbers, computed without CUDA."""

import math
from itertools import product

import pytest
import torch

from imagefleet_worker.sampling.philox import PhiloxGenerator

PUBLISHED = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]
"""Of seed 0, `torch.randn(3, 4, device="cuda")`; from A1111's modules/rng_philox.py."""

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB),
    ),
]
"""Counter, key and first two words, from the kat_vectors of Random123, the authors' own library."""


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, int]:
    """The first two words of a counter, in Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (right >> 32) ^ c1 ^ k0,
            right & 0xFFFFFFFF,
            (left >> 32) ^ c3 ^ k1,
            left & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1


def normal(words: tuple[int, int]) -> float:
    """The sine half of the Box-Muller transform."""
    radius = math.sqrt(-2 * math.log((words[0] + 0.5) / 2**32))
    return radius * math.sin(2 * math.pi * (words[1] + 0.5) / 2**32)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_the_reference_implementation_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, int]
) -> None:
    assert philox(counter, key) == words


def test_the_numbers_equal_those_published_for_cuda() -> None:
    numbers = PhiloxGenerator(0).randn((3, 4))
    assert numbers.dtype == torch.float32
    torch.testing.assert_close(numbers, torch.tensor(PUBLISHED), atol=2e-6, rtol=0)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**64 - 1])
def test_each_call_increments_the_counter(seed: int) -> None:
    generator = PhiloxGenerator(seed)
    key = (seed % 2**32, seed // 2**32)
    for call, shape in enumerate([(2, 3), (5,), (2, 3)]):
        numbers = generator.randn(shape).flatten().tolist()
        expected = [normal(philox((call, 0, i, 0), key)) for i in range(len(numbers))]
        assert numbers == pytest.approx(expected, abs=1e-5)


def test_the_numbers_are_normal() -> None:
    numbers = PhiloxGenerator(7).randn((4, 64, 64)).double()
    assert numbers.mean().abs() < 0.03
    assert (numbers.std() - 1).abs() < 0.02
    assert ((numbers**4).mean() - 3).abs() < 0.2


def test_different_seeds_and_calls_are_uncorrelated() -> None:
    generators = [PhiloxGenerator(seed) for seed in (0, 1, 2**32)]
    numbers = [generator.randn((4, 32, 32)).flatten() for generator in generators * 2]
    for (i, one), (j, other) in product(enumerate(numbers), repeat=2):
        if i < j:
            assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.06
