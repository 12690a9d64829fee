"""Synthetic pictures that compress like photographs."""

import numpy as np
from PIL import Image

_OCTAVES = 9
_GRAIN = 1.5


def photograph(side: int, seed: int) -> Image.Image:
    """An RGB picture of noise at every scale, stronger at larger ones, with per-pixel grain."""
    random = np.random.default_rng(seed)
    light = np.zeros((side, side, 3), np.float32)
    for octave in range(_OCTAVES):
        coarse = random.normal(size=(2 ** (octave + 1),) * 2).astype(np.float32)
        layer = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        # Colour changes less than brightness.
        tint = 1 + 0.3 * random.normal(size=3)
        light += (np.asarray(layer) / 2**octave)[..., None] * tint.astype(np.float32)
    pixels = 128 + 50 * light + _GRAIN * random.normal(size=light.shape).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def enlarged(picture: Image.Image, side: int, seed: int) -> Image.Image:
    """A square crop of a picture, enlarged, with grain."""
    crop_side = min(picture.size)
    square = picture.convert("RGB").crop((0, 0, crop_side, crop_side))
    large = np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))
    grain = np.random.default_rng(seed).normal(size=large.shape).astype(np.float32)
    return Image.fromarray(np.clip(large + _GRAIN * grain, 0, 255).astype(np.uint8))
