"""Brownian motion over the noise levels, whose increments are the noise of the SDE solvers."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

UnitNoise = Callable[[int], Tensor]
"""Returns the unit noise of a seed."""
BrownianPath = Callable[[float], Tensor]
"""Returns the path's float64 value at a point; beyond the ends, the value at the nearer end."""

_DIGITS = 6
_POOL_SIZE = 24
_NODE_CACHE_SIZE = 64
"""Enough that the nodes which neighbouring levels share are not sampled again."""
_VALUE_CACHE_SIZE = 4
"""For the start, middle and end of a step; the end is the next step's start."""


def brownian_path(seed: int, start: float, end: float, unit_noise: UnitNoise) -> BrownianPath:
    """A path from 0 at `start`; independent of which points are queried and in which order.

    It equals torchsde's `BrownianTree` with its default tolerance, which k-diffusion and A1111 use:
    the interval is bisected, and each half's increment sampled given the whole's, until the middle
    equals the queried point to six digits.
    """
    whole = unit_noise(_seed_at(seed, ())).double() * (end - start) ** 0.5
    first, last = round(start, _DIGITS), round(end, _DIGITS)
    # Functions, not methods: a cache that references its owner would live until the next garbage
    # collection.
    noise = lru_cache(_NODE_CACHE_SIZE)(partial(_split_noise, seed, unit_noise))

    @lru_cache(_VALUE_CACHE_SIZE)
    def value(time: float) -> Tensor:
        low, high, at_low, increment = first, last, torch.zeros_like(whole), whole
        node, depth = 0, 0
        while low < time < high:
            middle = round((low + high) / 2, _DIGITS)
            fraction = (middle - low) / (high - low)
            spread = ((middle - low) * (high - middle) / (high - low)) ** 0.5
            half = fraction * increment + spread * noise(node, depth)
            if time < middle:
                high, increment, node = middle, half, 2 * node
            else:
                low, at_low, increment = middle, at_low + half, increment - half
                node = 2 * node + 1
            depth += 1
        return at_low if time <= low else at_low + increment

    return lambda time: value(round(time, _DIGITS))


def _split_noise(seed: int, unit_noise: UnitNoise, node: int, depth: int) -> Tensor:
    """The noise that splits interval number `node` of the 2 ** depth at that depth."""
    return unit_noise(_seed_at(seed, (node, depth)))


def _seed_at(seed: int, spawn_key: tuple[int, ...]) -> int:
    entropy = np.random.SeedSequence(seed, spawn_key=spawn_key, pool_size=_POOL_SIZE)
    return int(entropy.generate_state(1)[0])
