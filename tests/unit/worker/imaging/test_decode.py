"""Decoding input files: upright RGB, or an error before memory is allocated."""

import io
import struct
import zlib
from typing import Literal

import numpy as np
import pytest
from PIL import ExifTags, Image

from imagefleet_shared.errors import InvalidImage, UnsupportedSize
from imagefleet_shared.image_files import encode_image
from imagefleet_worker.imaging.decode import decode_image, decode_mask

Format = Literal["png", "jpeg", "webp"]
FORMATS: list[Format] = ["png", "jpeg", "webp"]
MAX_PIXELS = 1024 * 1024


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, exif: Image.Exif | None = None) -> bytes:
    """The file as another program would write it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif or Image.Exif())
    return buffer.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> object:
    return image.getpixel((x, y))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb_png(width: int, height: int) -> bytes:
    """A grey PNG whose few kilobytes decompress to width * height bytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", rows)
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_rotated_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    decoded = decode_image(encoded(noise(24, 16), kind, exif), MAX_PIXELS)
    assert decoded.size == ((24, 16) if orientation < 5 else (16, 24))


def test_transparent_pictures_are_composited_on_white() -> None:
    layer = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    layer.putpixel((1, 0), (200, 0, 0, 0))
    decoded = decode_image(encoded(layer, "PNG"), MAX_PIXELS)
    assert (decoded.mode, pixel(decoded), pixel(decoded, 1)) == (
        "RGB",
        (200, 0, 0),
        (255, 255, 255),
    )


def test_every_mode_becomes_rgb() -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    hollow = palette.copy()
    hollow.info["transparency"] = 1
    sixteen = Image.fromarray(np.full((2, 2), 0x8040, dtype=np.uint16))
    cases: list[tuple[Image.Image, str, tuple[int, int, int]]] = [
        (Image.new("L", (2, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (2, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("LA", (2, 2), (77, 0)), "PNG", (255, 255, 255)),
        (palette, "PNG", (10, 20, 30)),
        (hollow, "PNG", (255, 255, 255)),
        (sixteen, "PNG", (128, 128, 128)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
    ]
    for image, kind, expected in cases:
        decoded = decode_image(encoded(image, kind), MAX_PIXELS)
        assert (image.mode, decoded.mode, pixel(decoded)) == (image.mode, "RGB", expected)


def test_the_first_picture_of_a_phones_multi_picture_jpeg_is_used() -> None:
    small = Image.new("RGB", (4, 2), "red")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), "white").save(buffer, "MPO", save_all=True, append_images=[small])
    decoded = decode_image(buffer.getvalue(), MAX_PIXELS)
    assert (decoded.size, pixel(decoded)) == ((16, 8), (255, 255, 255))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = bomb_png(20_000, 20_000)
    assert len(bomb) < 1_000_000
    with pytest.raises(UnsupportedSize) as caught:
        decode_image(bomb, MAX_PIXELS)
    assert caught.value.args == ("input image", 20_000, 20_000, MAX_PIXELS)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_is_inclusive(format: Format) -> None:
    data = encode_image(noise(16, 16), format, None)
    assert decode_image(data, 256).size == (16, 16)
    with pytest.raises(UnsupportedSize, match="16x16"):
        decode_image(data, 255)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_refused(format: Format, fraction: float) -> None:
    data = encode_image(noise(64, 64), format, None)
    with pytest.raises(InvalidImage):
        decode_image(data[: int(len(data) * fraction)], MAX_PIXELS)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused_with_a_list_of_allowed_ones(kind: str) -> None:
    with pytest.raises(InvalidImage, match="PNG, JPEG and WebP"):
        decode_image(encoded(noise(16, 16), kind), MAX_PIXELS)


@pytest.mark.parametrize("data", [b"", b"hello, this is no picture\n", b"RIFF\x04\0\0\0WAVE"])
def test_data_that_is_no_image_is_refused_with_its_size(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=f"{len(data)} bytes"):
        decode_image(data, MAX_PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    buffer = io.BytesIO()
    other = noise(16, 16).transpose(Image.Transpose.ROTATE_90)
    noise(16, 16).save(buffer, kind, save_all=True, append_images=[other])
    with pytest.raises(InvalidImage, match="2 frames"):
        decode_image(buffer.getvalue(), MAX_PIXELS)


@pytest.mark.parametrize("size", [(0, 0), (0, 8), (8, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage):
        decode_image(bomb_png(*size), MAX_PIXELS)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_decoded_or_raise_invalid_image_and_nothing_else(format: Format) -> None:
    data = bytearray(encode_image(noise(24, 24), format, "a cat"))
    offsets = np.random.default_rng(1).integers(12, len(data), 300)
    for offset in offsets:
        damaged = bytearray(data)
        damaged[offset] ^= 0xFF
        try:
            decode_image(bytes(damaged), MAX_PIXELS)
        except (InvalidImage, UnsupportedSize):
            continue


def test_masks_keep_their_alpha_channel() -> None:
    layer = Image.merge("RGBA", [*noise(2, 1).split(), Image.new("L", (2, 1), 7)])
    for kind in ("PNG", "WEBP"):
        decoded = decode_mask(encoded(layer, kind), MAX_PIXELS)
        assert (decoded.mode, decoded.getchannel("A").getextrema()) == ("RGBA", (7, 7))
    palette = Image.new("P", (2, 1))
    palette.info["transparency"] = 0
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert decode_mask(buffer.getvalue(), MAX_PIXELS).getextrema()[-1] == (0, 0)


def test_opaque_masks_keep_their_mode_and_are_rotated_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    grey = noise(24, 16).convert("L")
    assert decode_mask(encoded(grey, "PNG", exif), MAX_PIXELS).size == (16, 24)
    deep = Image.fromarray(np.full((2, 2), 0x7F00, dtype=np.uint16))
    for mask in (grey, grey.convert("1"), deep):
        assert decode_mask(encoded(mask, "PNG"), MAX_PIXELS).mode == mask.mode


def test_invalid_masks_are_refused_like_pictures() -> None:
    with pytest.raises(UnsupportedSize, match="24x16"):
        decode_mask(encoded(noise(24, 16), "PNG"), 24 * 16 - 1)
    with pytest.raises(InvalidImage, match="cannot be decoded"):
        decode_mask(encoded(noise(64, 64), "PNG")[:2000], MAX_PIXELS)
