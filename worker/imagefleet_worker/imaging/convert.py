"""Pictures as PIL images and as tensors; the only place where value ranges are converted.

Three ranges are in use: PIL's 0..255, *unit* [0, 1] (upscalers), and the VAE's [-1, 1] (diffusers).
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from imagefleet_shared.errors import InvalidImage, UnsupportedSize
from imagefleet_shared.image_files import on_white, open_image

T = TypeVar("T")


def to_unit_range(image: Image.Image) -> Tensor:
    """An RGB picture as `(1, 3, H, W)` float32 in [0, 1], on the CPU; equal to diffusers' own.

    A grey one of 16 bits (I;16) keeps them all.
    """
    if image.mode == "I;16":
        grey = torch.from_numpy(np.asarray(image).astype(np.float32)) / 65535.0
        return grey.expand(1, 3, -1, -1)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    return pixels.contiguous().float().div_(255.0)


def from_unit_range(images: Tensor) -> list[Image.Image]:
    """`(B, 3, H, W)` in [0, 1], any float dtype and device, as B RGB pictures, rounded."""
    # In the order of a picture's bytes before they leave the device: the host would take longer.
    pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(picture) for picture in _on_host(pixels).numpy()]


def _on_host(pixels: Tensor) -> Tensor:
    """A tensor in host memory; from a GPU through page-locked memory, in one copy."""
    if pixels.device.type != "cuda":
        return pixels.cpu()
    # torch keeps page-locked blocks for the next picture; a blocking copy waits for the device.
    return torch.empty_like(pixels, device="cpu", pin_memory=True).copy_(pixels)


def to_vae_range(image: Image.Image) -> Tensor:
    """An RGB picture as `(1, 3, H, W)` float32 in [-1, 1], on the CPU; equal to diffusers' own."""
    return 2.0 * to_unit_range(image) - 1.0


def from_vae_range(images: Tensor) -> list[Image.Image]:
    """What the VAE decoded, `(B, 3, H, W)` in about [-1, 1], as B RGB pictures, clamped.

    Any float dtype and device. Equal to diffusers' own: also in half precision, where the scaling
    is done before the cast to float32.
    """
    return from_unit_range((images * 0.5 + 0.5).clamp(0, 1))


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """A copy of the picture at exactly that size in pixels, by Lanczos."""
    return image.resize((width, height), Image.Resampling.LANCZOS)


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
    return decode(data, max_pixels, _to_rgb)


def decode_mask(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a caller's file as `decode_image` does, but with its alpha channel: see `to_mask`.

    RGBA where anything can be transparent, else of the mode that the file has.

    Raises:
        InvalidImage, UnsupportedSize: as there.
    """
    return decode(data, max_pixels, _with_alpha)


def decode(data: bytes, max_pixels: int, convert: Callable[[Image.Image], T]) -> T:
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
