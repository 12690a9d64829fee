"""Brownian motion over the noise levels, whose increments are the noise of the SDE solvers."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[int], Tensor]
"""The unit noise of a seed."""

_DIGITS = 6
_POOL_SIZE = 24
_NODES_KEPT = 64
"""What neighbouring levels have in common is then not drawn again."""


class BrownianPath:
    """One path, the same whatever points are asked for and in which order.

    The path of torchsde's `BrownianTree` with its default tolerance, which k-diffusion and A1111
    use: the interval is halved, and each half's increment drawn given the whole's, until the middle
    is the point asked for to six digits.
    """

    def __init__(self, seed: int, start: float, end: float, draw: Draw) -> None:
        """A path from 0 at `start`; `draw` gives it its shape."""
        self._seed = seed
        self._start, self._end = round(start, _DIGITS), round(end, _DIGITS)
        entropy = np.random.SeedSequence(seed, pool_size=_POOL_SIZE)
        whole = draw(int(entropy.generate_state(3)[0]))
        self._whole = whole.double() * (end - start) ** 0.5
        self._draw = draw
        self._noise = lru_cache(_NODES_KEPT)(self._drawn)
        self.at = lru_cache(2)(self._at)

    def _drawn(self, node: int, depth: int) -> Tensor:
        """The noise that splits an interval; node: which of the 2 ** depth from the left."""
        entropy = np.random.SeedSequence(self._seed, spawn_key=(node, depth), pool_size=_POOL_SIZE)
        return self._draw(int(entropy.generate_state(4)[0])).double()

    def _at(self, time: float) -> Tensor:
        """The path's value, float64; beyond the ends it stays what it is there."""
        time = round(time, _DIGITS)
        start, end, node, depth = self._start, self._end, 0, 0
        value, increment = torch.zeros_like(self._whole), self._whole
        if time <= start:
            return value
        if time >= end:
            return increment
        while True:
            middle = round((start + end) / 2, _DIGITS)
            before, after = middle - start, end - middle
            spread = (before * after / (end - start)) ** 0.5
            half = before / (end - start) * increment + spread * self._noise(node, depth)
            if time == middle:
                return value + half
            if time < middle:
                end, increment, node = middle, half, 2 * node
            else:
                start, value, increment = middle, value + half, increment - half
                node = 2 * node + 1
            depth += 1
