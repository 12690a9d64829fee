"""Brownian motion over the noise levels, whose increments are the noise of the SDE solvers."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[int], Tensor]
"""The unit noise of a seed."""
Path = Callable[[float], Tensor]
"""The value, float64, at a point; beyond the ends of the path it is that of the end."""

_DIGITS = 6
_POOL_SIZE = 24
_NODES_KEPT = 64
"""What neighbouring levels have in common is then not drawn again."""
_VALUES_KEPT = 4
"""Of the start, middle and end of a step; the end is the next one's start."""


def brownian_path(seed: int, start: float, end: float, draw: Draw) -> Path:
    """A path from 0 at `start`, the same whatever points are asked for and in which order.

    That of torchsde's `BrownianTree` with its default tolerance, which k-diffusion and A1111 use:
    the interval is halved, and each half's increment drawn given the whole's, until the middle is
    the point asked for to six digits.
    """
    whole = draw(_seed_at(seed, ())).double() * (end - start) ** 0.5
    first, last = round(start, _DIGITS), round(end, _DIGITS)
    # Functions, not methods: a cache that holds its owner would live until the next collection.
    noise = lru_cache(_NODES_KEPT)(partial(_split_noise, seed, draw))

    @lru_cache(_VALUES_KEPT)
    def value(time: float) -> Tensor:
        low, high, at_low, increment = first, last, torch.zeros_like(whole), whole
        node, depth = 0, 0
        while low < time < high:
            middle = round((low + high) / 2, _DIGITS)
            share = (middle - low) / (high - low)
            spread = ((middle - low) * (high - middle) / (high - low)) ** 0.5
            half = share * increment + spread * noise(node, depth)
            if time < middle:
                high, increment, node = middle, half, 2 * node
            else:
                low, at_low, increment = middle, at_low + half, increment - half
                node = 2 * node + 1
            depth += 1
        return at_low if time <= low else at_low + increment

    return lambda time: value(round(time, _DIGITS))


def _split_noise(seed: int, draw: Draw, node: int, depth: int) -> Tensor:
    """The noise that splits an interval, the one of 2 ** depth with `node` others to its left."""
    return draw(_seed_at(seed, (node, depth)))


def _seed_at(seed: int, place: tuple[int, ...]) -> int:
    entropy = np.random.SeedSequence(seed, spawn_key=place, pool_size=_POOL_SIZE)
    return int(entropy.generate_state(1)[0])
