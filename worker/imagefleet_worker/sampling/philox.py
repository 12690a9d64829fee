"""The numbers of `torch.randn` on a CUDA device, computed on the CPU.

CUDA's generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011). Element i of a tensor is drawn by thread i, the counter's upper half, and a call moves the
lower half on by one. That holds for tensors no larger than the threads a GPU starts at once;
A1111's noise source "NV" takes it to hold for all, and so does this.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
_TO_UNIT = float(np.float32(2.3283064e-10))
"""2 ** -32 as CURAND has it, in single precision."""

_Words = NDArray[np.uint64]
"""32-bit words, each in 64 bits so that products fit."""


class PhiloxGenerator:
    """A source of normal numbers, like a `torch.Generator` of a CUDA device."""

    def __init__(self, seed: int) -> None:
        """Start as after `manual_seed(seed)`, any integer of 64 bits."""
        self._key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._calls = 0

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Unit noise, float32 on the CPU: what the next `torch.randn(shape)` would draw."""
        threads = np.arange(np.prod(shape), dtype=np.uint64)
        counter = (np.full_like(threads, self._calls), np.zeros_like(threads), threads)
        self._calls += 1
        first, second = _philox(*counter, self._key)
        return torch.from_numpy(_box_muller(first, second).astype(np.float32)).reshape(shape)


def _philox(first: _Words, second: _Words, third: _Words, key: tuple[int, int]) -> list[_Words]:
    """The first two of four random words for each counter, whose fourth word is 0."""
    words = [first, second, third, np.zeros_like(first)]
    for turn in range(_ROUNDS):
        keys = [
            np.uint64((word + turn * weyl) & 0xFFFFFFFF)
            for word, weyl in zip(key, _WEYL, strict=True)
        ]
        left, right = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            (right >> _HIGH) ^ words[1] ^ keys[0],
            right & _LOW,
            (left >> _HIGH) ^ words[3] ^ keys[1],
            left & _LOW,
        ]
    return words[:2]


def _box_muller(first: _Words, second: _Words) -> NDArray[np.float64]:
    """One normal number of each pair of words; CUDA throws the other away here too."""
    radius = np.sqrt(-2 * np.log(first * _TO_UNIT + _TO_UNIT / 2))
    turn = _TO_UNIT * 2 * np.pi
    return radius * np.sin(second * turn + turn / 2)
