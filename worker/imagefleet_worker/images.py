"""Pictures as bytes, as PIL images and as tensors; the only place where value ranges are converted.

Three ranges are in use: PIL's 0..255, *unit* [0, 1] (upscalers), and the VAE's [-1, 1] (diffusers).
"""

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from imagefleet_shared.errors import InvalidImage, InvalidRequest, UnsupportedSize

_UNICODE = b"UNICODE\0"
# A JPEG segment is at most 65,535 bytes, two of which hold its length.
_JPEG_EXIF_MAX_BYTES = 65_533


def to_unit_range(image: Image.Image) -> Tensor:
    """An RGB picture as `(1, 3, H, W)` float32 in [0, 1], on the CPU; equal to diffusers' own."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
    return pixels.contiguous().float() / 255.0


def from_unit_range(images: Tensor) -> list[Image.Image]:
    """`(B, 3, H, W)` in [0, 1], any float dtype and device, as B RGB pictures, rounded."""
    pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


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


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a caller's PNG, JPEG or WebP to 8-bit RGB, upright by its EXIF orientation.

    What is transparent is laid on white, as A1111's img2img does by default; colour profiles are
    ignored, as there. 16-bit pictures keep their high byte.

    Raises:
        InvalidImage: of another format, damaged, truncated or animated.
        UnsupportedSize: the header claims more than `max_pixels`; nothing was decoded.
    """
    return _decode(data, max_pixels, _to_rgb)


def decode_mask(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a caller's file as `decode_image` does, but with its alpha channel: see `to_mask`.

    RGBA where anything can be transparent, else of the mode that the file has.

    Raises:
        InvalidImage, UnsupportedSize: as there.
    """
    return _decode(data, max_pixels, _with_alpha)


def encode_image(
    image: Image.Image,
    format: Literal["png", "jpeg", "webp"],
    parameters: str | None,
    png_level: int = 1,
    quality: int = 95,
) -> bytes:
    """Encode an RGB picture, with `parameters` where A1111 and its readers look for it.

    That is a text chunk in PNG (tEXt, or iTXt where Latin-1 does not do), EXIF UserComment in JPEG
    and WebP.

    Args:
        png_level: zlib's, 0..9. Level 1 takes a fifth of the time of Pillow's default for 6 % more
            bytes.
        quality: of JPEG and (lossy) WebP, 1..100.

    Raises:
        InvalidRequest: a JPEG cannot hold a text so long (the limit is about 32,000 characters).
    """
    buffer = io.BytesIO()
    if format == "png":
        chunks = PngInfo()
        if parameters is not None:
            chunks.add_text("parameters", parameters)
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=png_level)
        return buffer.getvalue()
    exif = b"" if parameters is None else _user_comment(parameters)
    if format == "jpeg" and len(exif) > _JPEG_EXIF_MAX_BYTES:
        raise InvalidRequest(
            f"a JPEG holds at most {_JPEG_EXIF_MAX_BYTES} bytes of parameters, given {len(exif)}; "
            "ask for png or webp"
        )
    image.save(buffer, format.upper(), quality=quality, exif=exif)
    return buffer.getvalue()


def read_parameters(data: bytes) -> str | None:
    """The `parameters` text that `encode_image` or A1111 wrote; None where there is none.

    Raises:
        InvalidImage: of another format, or its header is damaged.
    """
    image = _open(data)
    if isinstance(image, PngImageFile):
        text = image.info.get("parameters")
        return None if text is None else str(text)
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if not comment.startswith(_UNICODE):
        return None
    return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")


def _open(data: bytes) -> ImageFile:
    """Read the header only.

    Pillow's own `Image.open` is not used: it refuses large pictures by a global limit, before their
    size can be told.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        reader = PngImageFile
    elif data.startswith(b"\xff\xd8\xff"):
        reader = JpegImageFile
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        reader = WebPImageFile
    else:
        raise InvalidImage(
            f"input image of {len(data)} bytes starts with {data[:12]!r}; "
            "allowed are PNG, JPEG and WebP"
        )
    try:
        return reader(io.BytesIO(data))
    except Exception as error:  # as in decode_image
        raise InvalidImage(
            f"input image of {len(data)} bytes has a damaged {reader.format} header: {error}"
        ) from error


def _decode(
    data: bytes, max_pixels: int, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    image = _open(data)
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
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: nearly every 16-bit picture would come out white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    deep = image.mode.startswith("I;16")  # as in _to_rgb, transparency is ignored there
    return image.convert("RGBA") if image.has_transparency_data and not deep else image


def _user_comment(text: str) -> bytes:
    exif = Image.Exif()
    comment = _UNICODE + text.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()
