"""Image files: encoding with `parameters` text, opening, and reading that text."""

import io

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile

from imagefleet_shared.errors import InvalidImage, InvalidRequest
from imagefleet_shared.field_types import ImageFormat
from imagefleet_shared.png import encode_png

MAX_SIDE_PX: dict[ImageFormat, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
"""Longest side that a file can have: PNG's header, libjpeg's and libwebp's encoders."""

_UNICODE = b"UNICODE\0"
# A JPEG segment is at most 65,535 bytes, two of which hold its length.
_JPEG_EXIF_MAX_BYTES = 65_533


def encode_image(
    image: Image.Image,
    format: ImageFormat,
    parameters: str | None,
    png_level: int = 1,
    quality: int = 95,
    icc_profile: bytes | None = None,
) -> bytes:
    """Encode an RGB or RGBA image, with `parameters` where A1111 and its readers look for it.

    That is a text chunk in PNG (tEXt, or iTXt if Latin-1 does not suffice), EXIF UserComment in
    JPEG and WebP. A JPEG has no transparency: transparent images are composited over white.

    Args:
        png_level: zlib's, 0..9; 1 is a faster encoder of about the same size, see `png`.
        quality: of JPEG and (lossy) WebP, 1..100.
        icc_profile: of the image's colours; None: sRGB, without a profile in the file.

    Raises:
        InvalidRequest: as `check_parameters`.
    """
    if parameters is not None:
        check_parameters(format, parameters)
    buffer = io.BytesIO()
    if format == "png":
        chunks = PngInfo()
        if parameters is not None:
            chunks.add_text("parameters", parameters)
        if png_level == 1:
            return encode_png(image, icc_profile, [chunk[:2] for chunk in chunks.chunks])
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=png_level, icc_profile=icc_profile)
        return buffer.getvalue()
    exif = b"" if parameters is None else _user_comment(parameters)
    if format == "jpeg":
        image = on_white(image)
    image.save(buffer, format.upper(), quality=quality, exif=exif, icc_profile=icc_profile)
    return buffer.getvalue()


def check_parameters(format: ImageFormat, parameters: str) -> None:
    """Check that a text fits into a file of that format.

    Raises:
        InvalidRequest: the text is too long for a JPEG (the limit is about 32,000 characters).
    """
    if format == "jpeg" and (length := len(_user_comment(parameters))) > _JPEG_EXIF_MAX_BYTES:
        raise InvalidRequest(
            f"a JPEG holds at most {_JPEG_EXIF_MAX_BYTES} bytes of parameters, given {length}; "
            "ask for png or webp"
        )


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, composited over white if it has transparency."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer)
    return white


def read_parameters(data: bytes) -> str | None:
    """The `parameters` text that `encode_image` or A1111 wrote; None if there is none.

    Raises:
        InvalidImage: the format is not supported, or the header or EXIF is damaged.
    """
    image = open_image(data)
    if isinstance(image, PngImageFile):
        text = image.info.get("parameters")
        return None if text is None else str(text)
    try:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception as error:  # as in open_image
        raise InvalidImage(f"image of {len(data)} bytes has damaged EXIF: {error}") from error
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return None
    return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")


def open_image(data: bytes) -> ImageFile:
    """Open a PNG, JPEG or WebP by reading its header only.

    Pillow's own `Image.open` is not used: it refuses large images by a global limit, before their
    size is known.

    Raises:
        InvalidImage: the format is not supported, or the header is damaged.
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


def _user_comment(text: str) -> bytes:
    exif = Image.Exif()
    comment = _UNICODE + text.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()
