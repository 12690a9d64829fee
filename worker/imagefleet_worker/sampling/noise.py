"""Seeded noise: the initial noise of a pass, and the noise that its steps add."""

from collections.abc import Callable

import torch
from torch import Tensor

from imagefleet_worker.sampling.brownian import brownian_path
from imagefleet_worker.sampling.philox import PhiloxGenerator
from imagefleet_worker.sampling.seeds import RandomSource, Seeds
from imagefleet_worker.sampling.steps import StepNoise

LatentShape = tuple[int, int, int]
"""Shape of one picture's latents, `(C, h, w)`."""

_SAME_DIRECTION = 0.9995


class Noise:
    """The noise of one pass: unit noise `(B, C, h, w)`, float32 on the CPU.

    Random numbers are consumed in A1111's order, so call `first` once, before `next`.
    """

    def __init__(self, seeds: Seeds, shape: LatentShape) -> None:
        """Noise for latents of that shape, without the batch."""
        self.seeds = seeds
        self.shape = shape
        self._generators = [_generator(seeds.rng, seed) for seed in seeds.seeds]

    def first(self) -> Tensor:
        """The initial noise."""
        return torch.stack([self._first(index) for index in range(len(self._generators))])

    def next(self) -> Tensor:
        """The noise of the next step."""
        return torch.stack([randn(self.shape) for randn in self._generators])

    def step_noise(self) -> StepNoise:
        """`next` as the noise function that solvers call."""
        return lambda sigma, sigma_next: self.next()

    def _first(self, index: int) -> Tensor:
        seeds, noise = self.seeds, self._generators[index](self.shape)
        inner = noise
        shape = self.shape
        if seeds.resize_from is not None:
            width, height = seeds.resize_from
            shape = (shape[0], height // 8, width // 8)
            inner = _generator(seeds.rng, seeds.seeds[index])(shape)
        if seeds.variation_seeds is not None and seeds.variation_strength:
            other = _generator(seeds.rng, seeds.variation_seeds[index])(shape)
            inner = _slerp(inner, other, seeds.variation_strength)
        return inner if shape == self.shape else _paste_centred(inner, noise)


def brownian_noise(seeds: Seeds, shape: LatentShape, sigmas: Tensor) -> StepNoise:
    """Noise from Brownian paths over sigma, whose sum does not depend on how finely they are split.

    Args:
        seeds: one path is made per seed.
        shape: of one picture's latents.
        sigmas: the full schedule, also for an img2img pass, which runs only its last part.
    """
    start, end = sigmas[sigmas > 0].min().item(), sigmas.max().item()
    paths = [
        brownian_path(seed, start, end, lambda node: _generator(seeds.rng, node)(shape))
        for seed in seeds.seeds
    ]

    def between(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        high, low = sigma.item(), sigma_next.item()
        increments = torch.stack([path(low) - path(high) for path in paths])
        return (increments / (sigma - sigma_next).abs().sqrt().item()).float()

    return between


def _generator(rng: RandomSource, seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """A function that samples unit noise of a shape, advancing the generator at every call."""
    if rng == "gpu":
        return PhiloxGenerator(seed).randn
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def _slerp(noise: Tensor, other: Tensor, strength: float) -> Tensor:
    """Spherical interpolation of each column of each channel, as in A1111."""
    cosine = (
        noise / noise.norm(dim=1, keepdim=True) * other / other.norm(dim=1, keepdim=True)
    ).sum(1, keepdim=True)
    if cosine.mean() > _SAME_DIRECTION:
        return noise
    angle = cosine.acos()
    weight, other_weight = ((1 - strength) * angle).sin(), (strength * angle).sin()
    return (weight * noise + other_weight * other) / angle.sin()


def _paste_centred(inner: Tensor, onto: Tensor) -> Tensor:
    """A copy of `onto` with `inner` pasted into its centre, cropped where `inner` is larger."""
    pasted = onto.clone()
    from_y, to_y = _centred(inner.shape[1], onto.shape[1])
    from_x, to_x = _centred(inner.shape[2], onto.shape[2])
    pasted[:, to_y, to_x] = inner[:, from_y, from_x]
    return pasted


def _centred(inner: int, outer: int) -> tuple[slice, slice]:
    """Along one axis: the part of the inner tensor that fits, and its position in the outer one."""
    margin = (outer - inner) // 2
    length = inner if margin >= 0 else inner + 2 * margin
    crop, start = max(-margin, 0), max(margin, 0)
    return slice(crop, crop + length), slice(start, start + length)
