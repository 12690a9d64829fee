"""Value ranges as in diffusers, sizes, and encoding with A1111's parameters."""

import io
from typing import Literal, cast

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import ExifTags, Image

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.images import (
    decode_image,
    encode_image,
    from_unit_range,
    from_vae_range,
    read_parameters,
    resize,
    to_unit_range,
    to_vae_range,
)

Format = Literal["png", "jpeg", "webp"]
FORMATS: list[Format] = ["png", "jpeg", "webp"]
MAX_PIXELS = 1024 * 1024
INFOTEXT = "a cat, naïve ☃ 猫 🐈\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1"


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, exif: Image.Exif | None = None) -> bytes:
    """As some other program writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif or Image.Exif())
    return buffer.getvalue()


def test_ranges_convert_as_in_diffusers() -> None:
    image = noise(17, 9)
    processor = VaeImageProcessor(do_resize=False)
    theirs = processor.preprocess(image)
    assert torch.equal(to_vae_range(image), theirs)
    assert torch.equal(
        to_unit_range(image), VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decoded_latents_become_the_pictures_that_diffusers_makes(dtype: torch.dtype) -> None:
    decoded = torch.randn(3, 3, 40, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs = cast("list[Image.Image]", VaeImageProcessor().postprocess(decoded, output_type="pil"))
    ours = from_vae_range(decoded)
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]
    assert ours[0].size == (24, 40)


def test_halves_round_as_in_diffusers() -> None:
    steps = torch.arange(511).float().div(510).expand(1, 3, 1, 511)
    [theirs] = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(steps))
    [ours] = from_unit_range(steps)
    assert ours.tobytes() == theirs.tobytes()


def test_every_value_survives_both_ranges() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], axis=-1))
    assert from_unit_range(to_unit_range(image))[0].tobytes() == image.tobytes()
    assert from_vae_range(to_vae_range(image))[0].tobytes() == image.tobytes()


def test_resizing_is_lanczos_to_the_exact_size() -> None:
    image = noise(16, 8)
    assert resize(image, 33, 7).size == (33, 7)
    assert (
        resize(image, 40, 20).tobytes()
        == image.resize((40, 20), Image.Resampling.LANCZOS).tobytes()
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", [INFOTEXT, "plain", "", "été"])
def test_parameters_come_back_from_every_format(format: Format, text: str) -> None:
    data = encode_image(noise(16, 16), format, text)
    assert read_parameters(data) == text
    assert decode_image(data, MAX_PIXELS).size == (16, 16)


@pytest.mark.parametrize("format", FORMATS)
def test_without_parameters_there_are_none(format: Format) -> None:
    assert read_parameters(encode_image(noise(16, 16), format, None)) is None


def test_parameters_lie_where_a1111_puts_them() -> None:
    with Image.open(io.BytesIO(encode_image(noise(8, 8), "png", INFOTEXT))) as png:
        assert png.info["parameters"] == INFOTEXT
    for format in ("jpeg", "webp"):
        with Image.open(io.BytesIO(encode_image(noise(8, 8), format, INFOTEXT))) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert comment == b"UNICODE\0" + INFOTEXT.encode("utf-16-be")


def test_a_comment_in_another_code_is_not_taken_for_parameters() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0holiday"
    assert read_parameters(encoded(noise(8, 8), "JPEG", exif)) is None


def test_a_text_too_long_for_jpeg_is_refused_and_fits_the_others() -> None:
    longest = "x" * 32_000
    assert read_parameters(encode_image(noise(8, 8), "jpeg", longest)) == longest
    with pytest.raises(InvalidRequest, match="65533"):
        encode_image(noise(8, 8), "jpeg", "x" * 33_000)
    for format in ("png", "webp"):
        assert read_parameters(encode_image(noise(8, 8), format, "x" * 33_000)) == "x" * 33_000


def test_png_is_lossless_at_every_level_and_quality_counts_elsewhere() -> None:
    image = noise(64, 64)
    for level in (0, 1, 9):
        data = encode_image(image, "png", None, png_level=level)
        assert decode_image(data, MAX_PIXELS).tobytes() == image.tobytes()
    for format in ("jpeg", "webp"):
        assert len(encode_image(image, format, None, quality=20)) < len(
            encode_image(image, format, None)
        )
