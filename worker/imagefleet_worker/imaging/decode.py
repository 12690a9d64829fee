"""Callers' files decoded as PIL images. Free of torch."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from imagefleet_shared.errors import InvalidImage, UnsupportedSize
from imagefleet_shared.image_files import on_white, open_image

T = TypeVar("T")


def deep_grey_as_rgb(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as RGB, by its high bytes; others themselves.

    Pillow's own conversion clips at 255: nearly every 16-bit picture would come out white.
    """
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a caller's PNG, JPEG or WebP to 8-bit RGB, upright by its EXIF orientation.

    What is transparent is laid on white, as A1111's img2img does by default; colour profiles are
    ignored, as there. 16-bit pictures keep their high byte.

    Raises:
        InvalidImage: of another format, damaged, truncated or animated.
        UnsupportedSize: the header claims more than `max_pixels`; nothing was decoded.
    """
    return decode_upright(data, max_pixels, _to_rgb)


def decode_mask(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a caller's file as `decode_image` does, but with its alpha channel: see `to_mask`.

    RGBA where anything can be transparent, else of the mode that the file has.

    Raises:
        InvalidImage, UnsupportedSize: as there.
    """
    return decode_upright(data, max_pixels, _with_alpha)


def decode_upright(data: bytes, max_pixels: int, convert: Callable[[Image.Image], T]) -> T:
    """What `convert` makes of a caller's PNG, JPEG or WebP, decoded and upright.

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
    return deep_grey_as_rgb(image) if image.mode.startswith("I;16") else on_white(image)


def _with_alpha(image: Image.Image) -> Image.Image:
    deep = image.mode.startswith("I;16")  # as in _to_rgb, transparency is ignored there
    return image.convert("RGBA") if image.has_transparency_data and not deep else image
