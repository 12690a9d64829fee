"""Pictures to enlarge: decoded with their depth, transparency and colour profile."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from imagefleet_shared.image_files import read_parameters
from imagefleet_worker.imaging.decode import decode_upright
from imagefleet_worker.upscale.alpha_bleed import spread_colours

_DEEP_WHITE = 65535
_COLOUR_SPACE = slice(16, 20)
"""Of a profile's header, where it says what it describes."""


@dataclass(frozen=True)
class UpscaleInput:
    """A caller's picture, upright."""

    image: Image.Image
    """RGB; or I;16 where the file is grey with 16 bits a pixel. Colours of pixels that are wholly
    transparent are those of their surroundings."""
    alpha: Image.Image | None
    """L, of the same size; None where the file has no transparency."""
    icc_profile: bytes | None
    """Of an RGB file's colours, to be carried over; None: sRGB, or the file says nothing."""
    parameters: str | None
    """The text that the picture carries of its making."""


def decode_upscale_input(content: bytes, max_pixels: int) -> UpscaleInput:
    """Decode a caller's PNG, JPEG or WebP for an enlargement.

    What a network cannot take is converted: palettes and 1-bit to RGB; CMYK and grey with a colour
    profile by that profile to sRGB (without one, as Pillow does). A profile that cannot be read is
    ignored, as by viewers. Of 16-bit files Pillow reads only grey ones in full; the others come
    with their high bytes.

    Raises:
        InvalidImage: of another format, damaged, truncated or animated.
        UnsupportedSize: the header claims more than `max_pixels`; nothing was decoded.
    """
    return decode_upright(content, max_pixels, lambda image: _taken_apart(image, content))


def _taken_apart(image: Image.Image, content: bytes) -> UpscaleInput:
    given = image.info.get("icc_profile")
    given = given if isinstance(given, bytes) else b""
    profile = _read_profile(given)
    parameters = read_parameters(content)
    if image.mode.startswith("I;16"):
        return UpscaleInput(_deep(image, profile), _deep_alpha(image), None, parameters)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha and alpha.getextrema() == (255, 255):
        alpha = None
    if profile and given[_COLOUR_SPACE] == b"RGB ":
        colours, kept = image.convert("RGB"), given
    else:
        colours, kept = _to_srgb(image, profile), None
    if alpha:
        colours = spread_colours(colours, alpha)
    return UpscaleInput(colours, alpha, kept, parameters)


def _deep(image: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> Image.Image:
    """16-bit grey in sRGB's tones; a profile acts through 256 points, between them linearly."""
    if profile is None:
        return image
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    tones = np.asarray(_to_srgb(ramp, profile))[0, :, 1]
    levels = np.interp(np.arange(_DEEP_WHITE + 1) / 257, np.arange(256), tones) * 257
    return Image.fromarray(np.rint(levels).astype(np.uint16)[np.asarray(image)])


def _deep_alpha(image: Image.Image) -> Image.Image | None:
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == hidden, 0, 255).astype(np.uint8))


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
    except ImageCms.PyCMSError:  # a profile for another mode
        return image.convert("RGB")
    assert converted is not None, "only in-place conversions give nothing"
    return converted
