"""Decoding of pictures to enlarge, with their bit depth, transparency and colour profile."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from imagefleet_shared.image_files import read_parameters
from imagefleet_worker.imaging.decode import decode_upright
from imagefleet_worker.upscale.alpha_bleed import spread_colours

_WHITE_16_BIT = 65535
_PROFILE_COLOUR_SPACE = slice(16, 20)
"""Bytes of a profile's header that name its colour space."""


@dataclass(frozen=True)
class UpscaleInput:
    """A caller's picture, upright."""

    image: Image.Image
    """RGB; or I;16 if the file is 16-bit greyscale. Fully transparent pixels have the colours of
    their surroundings."""
    alpha: Image.Image | None
    """L, of the same size; None if the file has no transparency."""
    icc_profile: bytes | None
    """Profile of an RGB file, to be copied to the result; None: sRGB or unspecified."""
    parameters: str | None
    """The generation parameters embedded in the file."""


def decode_upscale_input(content: bytes, max_pixels: int) -> UpscaleInput:
    """Decode a PNG, JPEG or WebP of a caller for upscaling.

    Modes that networks do not support are converted: palettes and 1-bit to RGB, CMYK and grey to
    sRGB by their colour profile (without one, as Pillow does). An unreadable profile is ignored, as
    viewers do. Pillow reads only greyscale 16-bit files in full; of others, the high bytes.

    Raises:
        InvalidImage: another format, damaged, truncated or animated.
        UnsupportedSize: the header states more than `max_pixels`; nothing was decoded.
    """
    return decode_upright(content, max_pixels, lambda image: _split(image, content))


def _split(image: Image.Image, content: bytes) -> UpscaleInput:
    stored = image.info.get("icc_profile")
    icc_profile = stored if isinstance(stored, bytes) else b""
    profile = _read_profile(icc_profile)
    parameters = read_parameters(content)
    if image.mode.startswith("I;16"):
        return UpscaleInput(_grey16_to_srgb(image, profile), _grey16_alpha(image), None, parameters)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha and alpha.getextrema() == (255, 255):
        alpha = None
    if profile and icc_profile[_PROFILE_COLOUR_SPACE] == b"RGB ":
        colours, rgb_profile = image.convert("RGB"), icc_profile
    else:
        colours, rgb_profile = _to_srgb(image, profile), None
    if alpha:
        colours = spread_colours(colours, alpha)
    return UpscaleInput(colours, alpha, rgb_profile, parameters)


def _grey16_to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> Image.Image:
    """Convert 16-bit grey to sRGB tones; a profile is sampled at 256 points, linear in between."""
    if profile is None:
        return image
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    tones = np.asarray(_to_srgb(ramp, profile))[0, :, 1]
    levels = np.interp(np.arange(_WHITE_16_BIT + 1) / 257, np.arange(256), tones) * 257
    return Image.fromarray(np.rint(levels).astype(np.uint16)[np.asarray(image)])


def _grey16_alpha(image: Image.Image) -> Image.Image | None:
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8))


def _read_profile(content: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(content))
    except (ImageCms.PyCMSError, OSError):
        return None


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> Image.Image:
    grey = image.convert("L") if image.mode in ("1", "LA") else image
    if profile is None or grey.mode not in ("L", "CMYK"):
        return image.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(
            grey, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except ImageCms.PyCMSError:  # the profile is for another mode
        return image.convert("RGB")
    assert converted is not None, "only in-place conversions return None"
    return converted
