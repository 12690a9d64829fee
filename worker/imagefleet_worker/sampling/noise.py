"""What a seed means: the noise that a pass starts from and that its steps add."""

from collections.abc import Callable

import torch
from torch import Tensor

from imagefleet_worker.sampling.brownian import brownian_path
from imagefleet_worker.sampling.philox import PhiloxGenerator
from imagefleet_worker.sampling.seeds import RandomSource, Seeds
from imagefleet_worker.sampling.steps import StepNoise

LatentShape = tuple[int, int, int]
"""Of one picture's latents: `(C, h, w)`."""

_SAME_DIRECTION = 0.9995


class Noise:
    """The noise of one pass, unit and float32 on the CPU, `(B, C, h, w)`.

    As A1111 draws it, hence call `first` first, and once.
    """

    def __init__(self, seeds: Seeds, shape: LatentShape) -> None:
        """Noise for latents of that shape, without the batch."""
        self.seeds = seeds
        self.shape = shape
        self._draws = [_generator(seeds.rng, seed) for seed in seeds.seeds]

    def first(self) -> Tensor:
        """The noise to start from."""
        return torch.stack([self._first(place) for place in range(len(self._draws))])

    def next(self) -> Tensor:
        """The noise of the next step."""
        return torch.stack([draw(self.shape) for draw in self._draws])

    def step_noise(self) -> StepNoise:
        """`next`, for the solvers that ask for noise between two levels."""
        return lambda sigma, sigma_next: self.next()

    def _first(self, place: int) -> Tensor:
        seeds, own = self.seeds, self._draws[place](self.shape)
        inner = own
        shape = self.shape
        if seeds.resize_from is not None:
            width, height = seeds.resize_from
            shape = (shape[0], height // 8, width // 8)
            inner = _generator(seeds.rng, seeds.seeds[place])(shape)
        if seeds.variation_seeds is not None and seeds.variation_strength:
            other = _generator(seeds.rng, seeds.variation_seeds[place])(shape)
            inner = _turned(inner, other, seeds.variation_strength)
        return inner if shape == self.shape else _pasted(inner, own)


def brownian(seeds: Seeds, shape: LatentShape, sigmas: Tensor) -> StepNoise:
    """Noise of Brownian paths over the levels: the finer the steps, the same in sum.

    Args:
        seeds: each the seed of a path.
        shape: of one picture's latents.
        sigmas: the whole schedule, of which an img2img pass runs the last part.
    """
    start, end = sigmas[sigmas > 0].min().item(), sigmas.max().item()
    paths = [
        brownian_path(seed, start, end, lambda at: _generator(seeds.rng, at)(shape))
        for seed in seeds.seeds
    ]

    def between(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        high, low = sigma.item(), sigma_next.item()
        fallen = torch.stack([path(low) - path(high) for path in paths])
        return (fallen / (sigma - sigma_next).abs().sqrt().item()).float()

    return between


def _generator(rng: RandomSource, seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """A function that draws unit noise of a shape, other numbers at every call."""
    if rng == "gpu":
        return PhiloxGenerator(seed).randn
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def _turned(noise: Tensor, other: Tensor, strength: float) -> Tensor:
    """Spherical interpolation, column by column of each channel, which is A1111's choice."""
    cosine = (
        noise / noise.norm(dim=1, keepdim=True) * other / other.norm(dim=1, keepdim=True)
    ).sum(1, keepdim=True)
    if cosine.mean() > _SAME_DIRECTION:
        return noise
    angle = cosine.acos()
    own, others = ((1 - strength) * angle).sin(), (strength * angle).sin()
    return (own * noise + others * other) / angle.sin()


def _pasted(inner: Tensor, onto: Tensor) -> Tensor:
    """One picture's noise with the middle of it replaced by another's, cut where that is larger."""
    pasted = onto.clone()
    for_rows = _centred(inner.shape[1], onto.shape[1])
    for_columns = _centred(inner.shape[2], onto.shape[2])
    (from_y, to_y), (from_x, to_x) = for_rows, for_columns
    pasted[:, to_y, to_x] = inner[:, from_y, from_x]
    return pasted


def _centred(inner: int, outer: int) -> tuple[slice, slice]:
    """The part of the inner line that fits, and where it goes on the outer one."""
    margin = (outer - inner) // 2
    length = inner if margin >= 0 else inner + 2 * margin
    cut, start = max(-margin, 0), max(margin, 0)
    return slice(cut, cut + length), slice(start, start + length)
