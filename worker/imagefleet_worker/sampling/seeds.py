"""The seeds of a job's pictures, from the request or derived from the job's id."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from imagefleet_shared.requests import GenerateRequest

RandomSource = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The seeds of a batch, one per picture. A picture's noise depends on its own seeds only."""

    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...] | None = None
    """Seeds towards whose noise the initial noise is interpolated; None: no variation."""
    variation_strength: float = 0.0
    """0 keeps the initial noise, 1 replaces it with that of the variation seed."""
    resize_from: tuple[int, int] | None = None
    """Width and height in pixels of the noise that is pasted into the centre; None: none is."""
    rng: RandomSource = "cpu"
    """Random numbers of torch on a CPU, or on a CUDA device (A1111's "GPU" and "NV")."""


def image_seeds(request: GenerateRequest) -> Seeds:
    """The seeds of a request's pictures.

    As in A1111, the seed is incremented for each picture, or with a variation the variation seed
    instead.
    """
    indices = range(request.num_images)
    first, variation = request.seed or 0, request.variation_seed or 0
    varied = request.variation_strength > 0
    return Seeds(
        seeds=tuple(first if varied else first + index for index in indices),
        variation_seeds=tuple(variation + index for index in indices),
        variation_strength=request.variation_strength,
        resize_from=request.seed_resize_from,
        rng=request.rng,
    )


def derive_seed(text: str) -> int:
    """A seed from a text such as a job's id: a retry on another worker renders the same picture.

    It has 31 bits, which leaves room to increment it for further pictures.
    """
    return int.from_bytes(sha256(text.encode()).digest()[:4]) >> 1
