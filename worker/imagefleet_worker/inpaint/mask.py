"""Masks: white is drawn anew, black stays, grey blends."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops
from scipy.ndimage import correlate1d
from torch import Tensor


def to_mask(image: Image.Image, invert: bool) -> Image.Image:
    """A picture of any mode as a mask, L.

    Where any pixel is transparent the alpha channel is the mask, cut at 128 to black or white;
    else the brightness is, its greys kept (A1111's mask canvas gives the first, files the second).
    """
    mask = _alpha(image) or _brightness(image)
    return ImageChops.invert(mask) if invert else mask


def blurred(mask: Image.Image, radius: int) -> Image.Image:
    """The mask L, its edges softened over that many pixels; 0: as it is.

    Byte for byte OpenCV's `GaussianBlur` as A1111 calls it: first along the rows, then along the
    columns, 2 * int(2.5 * radius + 0.5) + 1 weights of standard deviation `radius`, the picture
    mirrored at its borders without repeating the outermost pixel.
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
    """A mask L as `(1, 1, H/8, W/8)` float32, 1 where latents are drawn, 0 where they stay.

    Rounded, as A1111 does unless an extension asks for else: greys blend in pixels only.
    """
    small = mask.resize((mask.width // 8, mask.height // 8), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small) > 127).float()[None, None]


def _alpha(image: Image.Image) -> Image.Image | None:
    """The alpha channel in black and white; None where nothing is transparent."""
    if not image.has_transparency_data or image.mode.startswith("I;16"):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return None
    return alpha.point([255 if value > 128 else 0 for value in range(256)])


def _brightness(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: nearly every 16-bit mask would come out white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L")


def _gaussian_256ths(radius: int) -> NDArray[np.float64]:
    """Weights in whole 256ths, which sum to 256: OpenCV blurs 8-bit pictures in fixed point.

    Each weight is rounded with what the rounding before left over, from the ends inward; the one
    in the middle takes the rest.
    """
    reach = int(2.5 * radius + 0.5)
    exact = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    exact *= 256 / exact.sum()
    weights = np.zeros_like(exact)
    left_over = 0.0
    for place in range(reach):
        wanted = exact[place] + left_over
        weights[place] = weights[-1 - place] = np.rint(wanted)
        left_over = wanted - weights[place]
    weights[reach] = 256 - weights.sum()
    return weights
