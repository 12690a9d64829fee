"""Resize modes against references computed without resizing boxes of zero extent."""

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imagefleet_shared.field_types import ResizeMode
from imagefleet_worker.inpaint.fit import crop_to_multiple_of_8, fit

sides = st.integers(1, 90)
targets = st.integers(1, 12).map(lambda eighths: 8 * eighths)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def lanczos(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def pixels_of(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def extended(outer: NDArray[np.int64], inner: NDArray[np.int64]) -> NDArray[np.int64]:
    """A bicubic filter half a pixel outside the last line: 9/8 of it minus 1/8 of the previous."""
    return np.clip((9 * outer - inner + 4) // 8, 0, 255)


@pytest.mark.parametrize("mode", ["just_resize", "latent"])
def test_just_resize_stretches_by_lanczos(mode: ResizeMode) -> None:
    image = noise(31, 17)
    assert fit(image, 64, 40, mode).tobytes() == lanczos(image, 64, 40).tobytes()


@pytest.mark.parametrize("mode", ["just_resize", "crop_and_resize", "resize_and_fill", "latent"])
def test_a_picture_of_the_target_size_is_unchanged(mode: ResizeMode) -> None:
    image = noise(72, 40)
    assert fit(image, 72, 40, mode).tobytes() == image.tobytes()


def test_crop_and_resize_keeps_the_centre() -> None:
    wide = noise(200, 50)
    assert fit(wide, 64, 64, "crop_and_resize").tobytes() == (
        lanczos(wide, 256, 64).crop((96, 0, 160, 64)).tobytes()
    )
    # Halves are rounded down before the subtraction: 3 - 1, not (6 - 3) / 2.
    assert fit(noise(6, 3), 3, 3, "crop_and_resize").tobytes() == (
        noise(6, 3).crop((2, 0, 5, 3)).tobytes()
    )
    tall = noise(50, 101)
    assert fit(tall, 64, 64, "crop_and_resize").tobytes() == (
        lanczos(tall, 64, 129).crop((0, 32, 64, 96)).tobytes()
    )


def test_resize_and_fill_extends_the_top_and_bottom_edges() -> None:
    result = pixels_of(fit(noise(200, 50), 64, 64, "resize_and_fill"))
    inner = pixels_of(lanczos(noise(200, 50), 64, 16))
    np.testing.assert_array_equal(result[24:40], inner)
    np.testing.assert_array_equal(result[:24], np.tile(extended(inner[0], inner[1]), (24, 1, 1)))
    np.testing.assert_array_equal(result[40:], np.tile(extended(inner[-1], inner[-2]), (24, 1, 1)))


def test_resize_and_fill_extends_the_left_and_right_edges() -> None:
    """The inner picture is 21 wide, so the left band is one pixel wider than the right one."""
    result = pixels_of(fit(noise(33, 100), 64, 64, "resize_and_fill"))
    inner = pixels_of(lanczos(noise(33, 100), 21, 64))
    np.testing.assert_array_equal(result[:, 22:43], inner)
    left, right = extended(inner[:, 0], inner[:, 1]), extended(inner[:, -1], inner[:, -2])
    np.testing.assert_array_equal(result[:, :22], np.repeat(left[:, None], 22, axis=1))
    np.testing.assert_array_equal(result[:, 43:], np.repeat(right[:, None], 21, axis=1))


@given(width=sides, height=sides, target_width=targets, target_height=targets)
def test_resize_and_fill_leaves_no_gap(
    width: int, height: int, target_width: int, target_height: int
) -> None:
    white = Image.new("L", (width, height), 255)
    filled = fit(white, target_width, target_height, "resize_and_fill")
    assert cast("tuple[int, int]", filled.getextrema()) == (255, 255)
    assert filled.size == (target_width, target_height)


@given(width=sides, height=sides, target_width=sides, target_height=sides)
def test_crop_and_resize_leaves_no_gap(
    width: int, height: int, target_width: int, target_height: int
) -> None:
    white = Image.new("L", (width, height), 255)
    filled = fit(white, target_width, target_height, "crop_and_resize")
    assert cast("tuple[int, int]", filled.getextrema()) == (255, 255)
    assert filled.size == (target_width, target_height)


@pytest.mark.parametrize("mode", ["crop_and_resize", "resize_and_fill"])
def test_pictures_one_pixel_high_or_wide_are_fitted_too(mode: ResizeMode) -> None:
    for size in ((4096, 1), (1, 4096), (1, 1)):
        colours = fit(Image.new("RGB", size, (9, 99, 199)), 64, 128, mode).getcolors()
        assert colours == [(64 * 128, (9, 99, 199))]


def test_an_image_is_cropped_to_a_multiple_of_8_and_at_least_8_pixels() -> None:
    image = noise(61, 40)
    assert crop_to_multiple_of_8(image).tobytes() == image.crop((0, 0, 56, 40)).tobytes()
    assert crop_to_multiple_of_8(noise(3, 17)).size == (8, 16)


def test_an_extremely_wide_picture_is_cropped_before_it_is_enlarged() -> None:
    """8192 x 8 to 1024 pixels: the full enlargement would be 1,048,576 pixels wide."""
    line = Image.new("RGB", (8192, 8), (0, 0, 0))
    line.paste((255, 255, 255), (4096, 0, 8192, 8))
    result = pixels_of(fit(line, 1024, 1024, "crop_and_resize"))
    assert result.shape == (1024, 1024, 3)
    # Lanczos rings over three pixels of the line, which are 384 here.
    assert result[:, :384].max() < 32
    assert result[:, 640:].min() > 223
