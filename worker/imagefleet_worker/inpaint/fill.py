"""What lies under the mask at the start."""

from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from imagefleet_shared.field_types import MaskFill

_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius in pixels, and how often that blur is laid on: thin veils are made denser."""


def without_masked(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """An RGB picture as RGBa (premultiplied), transparent as far as the mask (L) is white."""
    layer = picture.convert("RGB")
    layer.putalpha(ImageChops.invert(mask))
    return layer.convert("RGBa")


def fill_masked(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The RGB picture with its surroundings' colours under the mask (L), as A1111's "fill".

    Blurs of what is not masked are laid on each other, the widest at the bottom; each covers as
    far as its radius reaches into the masked part. What no blur reaches is black.
    """
    known = without_masked(picture, mask)
    under = Image.new("RGBA", picture.size)
    for radius, times in _BLURS:
        veil = known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            under.alpha_composite(veil)
    return under.convert("RGB")


def fill_latents(latents: Tensor, mask: Tensor, noise: Tensor, fill: MaskFill) -> Tensor:
    """Latents with what the two latent modes put under the mask; else as they are.

    Args:
        latents: `(B, C, H/8, W/8)`, clean.
        mask: `(B or 1, 1, H/8, W/8)`, 1 where drawn.
        noise: unit noise like `latents`. A1111 takes the picture's own: what its first pass starts
            from.
    """
    if fill == "latent_noise":
        return latents * (1 - mask) + noise * mask
    if fill == "latent_nothing":
        return latents * (1 - mask)
    return latents
