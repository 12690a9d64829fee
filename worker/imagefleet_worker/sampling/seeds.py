"""The seeds of a job's pictures: as the request gives them, else made from the job's id."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from imagefleet_shared.requests import GenerateRequest

RandomSource = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The seeds of a batch, one per picture. A picture's noise depends on nothing but its own."""

    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...] | None = None
    """Seeds that the first noise is turned towards; None: it is not."""
    variation_strength: float = 0.0
    """How far: 0 leaves the first noise, 1 makes it the variation seed's."""
    resize_from: tuple[int, int] | None = None
    """Width and height in pixels of the picture whose noise goes in the middle; None: as it is."""
    rng: RandomSource = "cpu"
    """Numbers as torch draws them on a CPU, or as on a CUDA device (A1111's "GPU" and "NV")."""


def seeds_of(request: GenerateRequest) -> Seeds:
    """One per picture; with a variation it is the variation's seed that counts on, as in A1111."""
    places = range(request.num_images)
    first, variation = request.seed or 0, request.variation_seed or 0
    varied = request.variation_strength > 0
    return Seeds(
        seeds=tuple(first if varied else first + place for place in places),
        variation_seeds=tuple(variation + place for place in places),
        variation_strength=request.variation_strength,
        resize_from=request.seed_resize_from,
        rng=request.rng,
    )


def seed_of(text: str) -> int:
    """The same on every attempt, so that a second worker draws the same picture.

    In 31 bits: other pictures' seeds count on from there.
    """
    return int.from_bytes(sha256(text.encode()).digest()[:4]) >> 1
