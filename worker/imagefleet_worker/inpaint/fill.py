"""Filling the masked area before denoising."""

from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from imagefleet_shared.field_types import MaskFill

_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Radius in pixels, and how often that blur is composited: repeating it makes it more opaque."""


def erase_masked(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """An RGB picture as RGBa (premultiplied), transparent where the mask (L) is white."""
    layer = picture.convert("RGB")
    layer.putalpha(ImageChops.invert(mask))
    return layer.convert("RGBa")


def fill_masked(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Fill the masked area (L) of an RGB picture with the surrounding colours, as A1111's "fill".

    Blurs of the unmasked area are composited, the widest at the bottom; each extends into the
    masked area by its radius. What no blur reaches is black.
    """
    unmasked = erase_masked(picture, mask)
    filled = Image.new("RGBA", picture.size)
    for radius, repetitions in _BLURS:
        blurred = unmasked.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repetitions):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


def fill_latents(latents: Tensor, mask: Tensor, noise: Tensor, fill: MaskFill) -> Tensor:
    """Fill the masked area in latent space, for the two latent modes; others return it unchanged.

    Args:
        latents: `(B, C, H/8, W/8)`, clean.
        mask: `(B or 1, 1, H/8, W/8)`, 1 where generated.
        noise: unit noise like `latents`; as in A1111, the initial noise of the first pass.
        fill: the fill mode.
    """
    if fill == "latent_noise":
        return latents * (1 - mask) + noise * mask
    if fill == "latent_nothing":
        return latents * (1 - mask)
    return latents
