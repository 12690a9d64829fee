"""Bit depth, transparency, colour profile and text of pictures to upscale."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageDraw

from imagefleet_shared.errors import InvalidImage, UnsupportedSize
from imagefleet_shared.image_files import encode_image
from imagefleet_shared.request_parts import UpscalePass
from imagefleet_worker.upscale.alpha import with_alpha
from imagefleet_worker.upscale.alpha_bleed import spread_colours
from imagefleet_worker.upscale.decode_input import UpscaleInput, decode_upscale_input

MAX_PIXELS = 1024 * 1024
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A profile for another mode, which Pillow can always create.
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> UpscaleInput:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return decode_upscale_input(buffer.getvalue(), MAX_PIXELS)


def disc(colour: tuple[int, int, int] = (200, 30, 30), size: int = 40) -> Image.Image:
    """A disc on transparent black."""
    layer = Image.new("RGBA", (size, size))
    ImageDraw.Draw(layer).ellipse((8, 8, size - 9, size - 9), fill=(*colour, 255))
    return layer


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_kept(kind: str) -> None:
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    layer = disc()
    picture = decoded(layer, kind, **options)
    assert picture.image.mode == "RGB"
    assert picture.alpha is not None
    assert picture.alpha.tobytes() == layer.getchannel("A").tobytes()


def test_transparency_of_grey_and_palette_pictures_is_kept() -> None:
    grey = decoded(disc().convert("LA"))
    assert grey.alpha is not None
    palette = Image.new("P", (4, 1))
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.putdata([0, 1, 1, 1])
    transparent = decoded(palette, transparency=0)
    assert transparent.alpha is not None
    assert list(transparent.alpha.tobytes()) == [0, 255, 255, 255]
    assert transparent.image.getpixel((3, 0)) == (200, 100, 50)


def test_a_fully_opaque_alpha_channel_is_dropped() -> None:
    assert decoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255))).alpha is None


def test_transparent_pixels_take_the_surrounding_colours() -> None:
    """Transparent black around a red disc would become a dark fringe."""
    layer = disc()
    spread = spread_colours(layer.convert("RGB"), layer.getchannel("A"))
    assert np.abs(np.asarray(spread).astype(int) - (200, 30, 30)).max() < 5


def test_colours_of_barely_visible_pixels_are_kept() -> None:
    layer = Image.new("RGBA", (2, 1), (10, 200, 30, 1))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    spread = spread_colours(layer.convert("RGB"), layer.getchannel("A"))
    assert spread.getpixel((0, 0)) == (10, 200, 30)


def test_a_fully_transparent_picture_is_accepted() -> None:
    assert decoded(Image.new("RGBA", (5, 3))).image.size == (5, 3)


def test_an_enlarged_edge_has_no_dark_fringe() -> None:
    layer = disc()
    picture = decoded(layer)
    assert picture.alpha is not None
    upscale = UpscalePass(scale=4)
    colours = picture.image.resize((160, 160), Image.Resampling.LANCZOS)
    enlarged = with_alpha(colours, picture.alpha, upscale)
    pixels = np.asarray(enlarged).astype(int)
    visible = pixels[pixels[..., 3] > 0]
    assert visible[:, 0].min() > 190
    fringed = layer.convert("RGB").resize((160, 160), Image.Resampling.LANCZOS)
    assert np.asarray(fringed)[pixels[..., 3] > 0][:, 0].min() < 100


def test_alpha_is_cropped_like_the_colours() -> None:
    alpha = Image.new("L", (20, 10), 255)
    upscale = UpscalePass(width=30, height=30)
    assert with_alpha(Image.new("RGB", (30, 30)), alpha, upscale).size == (30, 30)


def test_16_bit_grey_keeps_its_depth() -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) + 0x4000
    picture = decoded(Image.fromarray(levels))
    assert picture.image.mode == "I;16"
    assert np.array_equal(np.asarray(picture.image), levels)
    assert picture.alpha is None


def test_a_transparent_16_bit_level_becomes_alpha() -> None:
    levels = np.array([[0, 7, 300]], dtype=np.uint16)
    picture = decoded(Image.fromarray(levels), transparency=7)
    assert picture.alpha is not None
    assert list(picture.alpha.tobytes()) == [255, 0, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_rgb_profile_is_kept(kind: str) -> None:
    picture = decoded(Image.new("RGB", (8, 8), (9, 99, 199)), kind, icc_profile=SRGB)
    assert picture.icc_profile == SRGB
    for file_format in ("png", "jpeg", "webp"):
        content = encode_image(picture.image, file_format, None, icc_profile=picture.icc_profile)
        assert Image.open(io.BytesIO(content)).info["icc_profile"] == SRGB


def test_a_profile_that_is_damaged_or_for_another_mode_is_dropped() -> None:
    for profile in (b"no profile", LAB):
        picture = decoded(Image.new("RGB", (8, 8), (9, 99, 199)), icc_profile=profile)
        assert picture.icc_profile is None
        assert picture.image.getpixel((0, 0)) == (9, 99, 199)
        grey = decoded(Image.new("L", (8, 8), 77), icc_profile=profile)
        assert grey.image.getpixel((0, 0)) == (77, 77, 77)


def linear_grey() -> bytes:
    """A colour profile for linear grey."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(65536 * number)) for number in numbers)

    white = fixed(0.9642, 1.0, 0.8249)
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + white,
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 0x0100),
    }
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    size = start + len(body)
    header = struct.pack(">I4xI", size, 0x02100000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    header += bytes(28) + white + bytes(48)
    return header + table + body


def test_a_grey_profile_converts_the_picture_to_srgb() -> None:
    """Linear level 0x37 is sRGB level 128, at either depth."""
    profile = linear_grey()
    shallow = decoded(Image.new("L", (4, 4), 0x37), icc_profile=profile)
    assert shallow.icc_profile is None
    assert shallow.image.getpixel((0, 0)) == (128, 128, 128)
    deep = decoded(
        Image.fromarray(np.array([[0x3700, 0x3780, 0xFFFF]], dtype=np.uint16)), icc_profile=profile
    )
    low, high, white = np.asarray(deep.image)[0].tolist()
    assert deep.image.mode == "I;16"
    assert abs(low / 257 - 127.5) < 1
    assert low < high < low + 257
    assert white == 0xFFFF


def test_cmyk_becomes_rgb() -> None:
    picture = decoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert (picture.image.mode, picture.image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_colours_and_alpha_follow_the_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    layer = disc().crop((0, 0, 40, 20))
    picture = decoded(layer, exif=exif)
    assert picture.alpha is not None
    expected = (40, 20) if orientation < 5 else (20, 40)
    assert picture.image.size == picture.alpha.size == expected


def test_embedded_parameters_are_read() -> None:
    content = encode_image(Image.new("RGB", (8, 8)), "png", "a fox")
    assert decode_upscale_input(content, MAX_PIXELS).parameters == "a fox"


def test_bad_files_are_refused_like_other_inputs() -> None:
    with pytest.raises(UnsupportedSize):
        decode_upscale_input(encode_image(Image.new("RGB", (9, 9)), "png", None), 80)
    with pytest.raises(InvalidImage):
        decode_upscale_input(b"hello", MAX_PIXELS)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(
        buffer, "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    with pytest.raises(InvalidImage, match="2 frames"):
        decode_upscale_input(buffer.getvalue(), MAX_PIXELS)


def test_jpeg_encoding_composites_transparency_on_white() -> None:
    content = encode_image(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "jpeg", None)
    assert Image.open(io.BytesIO(content)).getpixel((8, 8)) == (255, 255, 255)
