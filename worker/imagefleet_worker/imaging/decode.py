"""Decoding input files to PIL images; imports no torch."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from imagefleet_shared.errors import InvalidImage, UnsupportedSize
from imagefleet_shared.image_files import on_white, open_image

T = TypeVar("T")


def grey16_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a 16-bit grey image to RGB by its high bytes; return other images unchanged.

    Pillow's own conversion clips at 255, which would turn nearly every 16-bit image white.
    """
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a PNG, JPEG or WebP to 8-bit RGB, rotated upright by its EXIF orientation.

    As in A1111's img2img, transparent images are composited on white, and colour profiles are
    ignored. 16-bit images keep their high byte.

    Raises:
        InvalidImage: the file has another format, or is damaged, truncated or animated.
        UnsupportedSize: the header states more than `max_pixels`; nothing was decoded.
    """
    return decode_upright(data, max_pixels, _to_rgb)


def decode_mask(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a mask as `decode_image` does, but keep its alpha channel (see `to_mask`).

    Returns RGBA if the file has transparency data, else the mode of the file.

    Raises:
        InvalidImage, UnsupportedSize: as `decode_image`.
    """
    return decode_upright(data, max_pixels, _with_alpha)


def decode_upright(data: bytes, max_pixels: int, convert: Callable[[Image.Image], T]) -> T:
    """Decode a PNG, JPEG or WebP, rotate it upright and return it converted by `convert`.

    Raises:
        InvalidImage, UnsupportedSize: as `decode_image`.
    """
    image = open_image(data)
    frames: int = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InvalidImage(f"input image has {frames} frames; allowed is 1, animations are not")
    if image.width * image.height > max_pixels:
        raise UnsupportedSize("input image", image.width, image.height, max_pixels)
    try:
        image.load()
        return convert(ImageOps.exif_transpose(image))
    except Exception as error:  # hostile bytes make the decoders fail in any way
        raise InvalidImage(
            f"input image ({image.format}, {image.width}x{image.height}) cannot be decoded: {error}"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    return grey16_to_rgb(image) if image.mode.startswith("I;16") else on_white(image)


def _with_alpha(image: Image.Image) -> Image.Image:
    is_16_bit = image.mode.startswith("I;16")  # transparency is ignored, as in _to_rgb
    return image.convert("RGBA") if image.has_transparency_data and not is_16_bit else image
