"""Masks: white areas are repainted, black areas are kept, grey areas are blended."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops
from scipy.ndimage import correlate1d
from torch import Tensor


def to_mask(image: Image.Image, invert: bool) -> Image.Image:
    """Convert an image of any mode to a mask, L.

    If any pixel is transparent, the mask is the alpha channel, thresholded at 128; else it is the
    brightness, including greys. (A1111 does the first for its mask canvas, the second for files.)
    """
    mask = _alpha(image) or _brightness(image)
    return ImageChops.invert(mask) if invert else mask


def blur_mask(mask: Image.Image, radius: int) -> Image.Image:
    """Blur a mask L with a Gaussian of that standard deviation in pixels; 0 returns it unchanged.

    The result equals OpenCV's `GaussianBlur` as A1111 calls it, byte for byte: first along rows,
    then along columns, with 2 * int(2.5 * radius + 0.5) + 1 weights, and the image mirrored at its
    borders without repeating the outermost pixel.
    """
    if radius == 0:
        return mask
    weights = _gaussian_256ths(radius)
    pixels = np.asarray(mask)
    for axis in (1, 0):
        sums = cast(
            NDArray[np.uint16],
            correlate1d(pixels, weights, axis=axis, output=np.uint16, mode="mirror"),
        )
        pixels = ((sums + 128) >> 8).astype(np.uint8)
    return Image.fromarray(pixels)


def to_latent_mask(mask: Image.Image) -> Tensor:
    """A mask L as `(1, 1, H/8, W/8)` float32, 1 where latents are generated, 0 where they are kept.

    Rounded to 0 or 1 as in A1111 without extensions: greys are blended in pixels only.
    """
    small = mask.resize((mask.width // 8, mask.height // 8), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small) > 127).float()[None, None]


def _alpha(image: Image.Image) -> Image.Image | None:
    """The alpha channel, thresholded; None if nothing is transparent."""
    if not image.has_transparency_data or image.mode.startswith("I;16"):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return None
    return alpha.point([255 if value > 128 else 0 for value in range(256)])


def _brightness(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which would turn nearly every 16-bit mask white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L")


def _gaussian_256ths(radius: int) -> NDArray[np.float64]:
    """Integer weights in 256ths, which sum to 256: OpenCV blurs 8-bit images in fixed point.

    From the ends inward, each weight is rounded after adding the previous rounding error; the
    middle one takes the remainder.
    """
    reach = int(2.5 * radius + 0.5)
    exact = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    exact *= 256 / exact.sum()
    weights = np.zeros_like(exact)
    error = 0.0
    for index in range(reach):
        weight = exact[index] + error
        weights[index] = weights[-1 - index] = np.rint(weight)
        error = weight - weights[index]
    weights[reach] = 256 - weights.sum()
    return weights
