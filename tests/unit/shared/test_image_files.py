"""Image files, and A1111's `parameters` in them."""

import io
from typing import get_args

import numpy as np
import pytest
from PIL import ExifTags, Image

from imagefleet_shared.errors import InvalidImage, InvalidRequest
from imagefleet_shared.field_types import ImageFormat
from imagefleet_shared.image_files import (
    MAX_SIDE_PX,
    encode_image,
    open_image,
    read_parameters,
)

FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
INFOTEXT = "a cat, naïve ☃ 猫 🐈\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1"


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, exif: Image.Exif | None = None) -> bytes:
    """An image file as another program writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif or Image.Exif())
    return buffer.getvalue()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", [INFOTEXT, "plain", "", "été"])
def test_parameters_are_read_back_from_every_format(format: ImageFormat, text: str) -> None:
    data = encode_image(noise(16, 16), format, text)
    assert read_parameters(data) == text
    assert open_image(data).size == (16, 16)


@pytest.mark.parametrize("format", FORMATS)
def test_without_parameters_there_are_none(format: ImageFormat) -> None:
    assert read_parameters(encode_image(noise(16, 16), format, None)) is None


def test_parameters_are_where_a1111_writes_them() -> None:
    with Image.open(io.BytesIO(encode_image(noise(8, 8), "png", INFOTEXT))) as png:
        assert png.info["parameters"] == INFOTEXT
    for format in ("jpeg", "webp"):
        with Image.open(io.BytesIO(encode_image(noise(8, 8), format, INFOTEXT))) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert comment == b"UNICODE\0" + INFOTEXT.encode("utf-16-be")


def test_a_comment_in_another_encoding_is_not_read_as_parameters() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0holiday"
    assert read_parameters(encoded(noise(8, 8), "JPEG", exif)) is None


def test_a_text_too_long_for_jpeg_is_refused_and_fits_the_other_formats() -> None:
    longest = "x" * 32_000
    assert read_parameters(encode_image(noise(8, 8), "jpeg", longest)) == longest
    with pytest.raises(InvalidRequest, match="65533"):
        encode_image(noise(8, 8), "jpeg", "x" * 33_000)
    for format in ("png", "webp"):
        assert read_parameters(encode_image(noise(8, 8), format, "x" * 33_000)) == "x" * 33_000


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("size", [(64, 64), (1, 1), (1, 200), (200, 1), (7, 128), (9, 129)])
def test_png_is_lossless_at_every_level_and_size(level: int, size: tuple[int, int]) -> None:
    gradient = Image.linear_gradient("L").resize(size)
    clear = noise(*size)
    clear.putalpha(gradient)
    for image in (noise(*size), gradient.convert("RGB"), clear):
        data = encode_image(image, "png", INFOTEXT, png_level=level, icc_profile=b"colours")
        with Image.open(io.BytesIO(data)) as png:
            png.verify()
        back = open_image(data)
        assert (back.mode, back.tobytes()) == (image.mode, image.tobytes())
        assert back.info["icc_profile"] == b"colours"


def test_file_sizes_depend_on_the_png_level_and_on_jpeg_and_webp_quality() -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((300, 300))
    sizes = [len(encode_image(image, "png", None, png_level=level)) for level in (9, 1, 0)]
    assert sizes == sorted(set(sizes))
    image = noise(64, 64)
    for format in ("jpeg", "webp"):
        assert len(encode_image(image, format, None, quality=20)) < len(
            encode_image(image, format, None)
        )


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_exif_raises_nothing() -> None:
    whole = encode_image(noise(8, 8), "jpeg", "a cat")
    start = whole.index(b"Exif\0\0") + 6
    for index in range(start, start + 60):
        for byte in (0, 2, 3, 255):
            damaged = whole[:index] + bytes([byte]) + whole[index + 1 :]
            assert isinstance(read_parameters(damaged), str | None)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_raise_nothing_but_invalid_image(format: ImageFormat) -> None:
    """A WebP's damaged EXIF raised Pillow's SyntaxError."""
    whole = encode_image(noise(8, 8), format, "a cat")
    refused = 0
    for index in range(len(whole)):
        for byte in (0, 3, 255):
            damaged = whole[:index] + bytes([byte]) + whole[index + 1 :]
            try:
                assert isinstance(read_parameters(damaged), str | None)
            except InvalidImage:
                refused += 1
    assert refused


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_formats_longest_side_is_exactly_what_its_encoder_takes(format: ImageFormat) -> None:
    longest = MAX_SIDE_PX[format]
    for size in ((longest, 1), (1, longest)):
        assert open_image(encode_image(Image.new("RGB", size), format, None)).size == size
    for size in ((longest + 1, 1), (1, longest + 1)):
        with pytest.raises((OSError, ValueError)):
            encode_image(Image.new("RGB", size), format, None)
