"""Masks from images of every mode, the blur against OpenCV's results, and latent masks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagefleet_worker.inpaint.mask import blur_mask, to_latent_mask, to_mask


def grey(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def rows_of(image: Image.Image) -> list[list[int]]:
    assert image.mode == "L"
    return np.asarray(image).tolist()


def with_alpha(mode: str, brightness: list[int], alpha: list[int]) -> Image.Image:
    bands = [grey([brightness])] * (3 if mode == "RGBA" else 1)
    return Image.merge(mode, [*bands, grey([alpha])])


def test_a_greyscale_mask_is_unchanged() -> None:
    assert rows_of(to_mask(grey([[0, 1, 127, 128, 255]]), False)) == [[0, 1, 127, 128, 255]]


def test_a_coloured_mask_is_converted_to_its_brightness() -> None:
    mask = Image.fromarray(np.array([[[255, 0, 0], [255, 255, 255], [7, 7, 7]]], dtype=np.uint8))
    assert rows_of(to_mask(mask, False)) == [[76, 255, 7]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_if_any_pixel_is_transparent_the_alpha_channel_is_the_mask(mode: str) -> None:
    mask = with_alpha(mode, [255, 255, 0, 0], [0, 128, 129, 255])
    assert rows_of(to_mask(mask, False)) == [[0, 0, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_is_ignored(mode: str) -> None:
    assert rows_of(to_mask(with_alpha(mode, [0, 100, 255], [255] * 3), False)) == [[0, 100, 255]]


def test_a_palette_image_with_transparency_is_a_mask_by_its_alpha() -> None:
    mask = Image.new("P", (2, 1))
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.putdata([0, 1])
    mask.info["transparency"] = 0
    assert rows_of(to_mask(mask, False)) == [[0, 255]]


def test_sixteen_bits_keep_their_high_byte_and_one_bit_is_black_or_white() -> None:
    deep = Image.fromarray(np.array([[0, 256, 0x7FFF, 0xFFFF]], dtype=np.uint16))
    assert rows_of(to_mask(deep, False)) == [[0, 1, 127, 255]]
    deep.info["transparency"] = 0
    assert rows_of(to_mask(deep, False)) == [[0, 1, 127, 255]]
    assert rows_of(to_mask(grey([[0, 255]]).convert("1"), False)) == [[0, 255]]


def test_invert_swaps_black_and_white() -> None:
    assert rows_of(to_mask(grey([[0, 100, 255]]), True)) == [[255, 155, 0]]
    alpha = with_alpha("RGBA", [9, 9], [0, 200])
    assert rows_of(to_mask(alpha, True)) == [[255, 0]]


# Results of OpenCV 4.14 and 5.0, with the two calls that A1111 makes.
OPENCV: list[tuple[int, list[list[int]], list[list[int]]]] = [
    (
        4,
        [[0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]],
        [[14, 15, 22, 32, 48, 67, 90, 115, 140, 165, 188, 207, 223, 233, 240, 241]],
    ),
    (2, [[0] * 8 + [255] + [0] * 8], [[0, 0, 0, 2, 7, 17, 31, 45, 52, 45, 31, 17, 7, 2, 0, 0, 0]]),
    # Sums that end in a half, and an input for which the order of rows and columns matters.
    (1, [[0, 0, 0, 0, 64, 0, 0, 0, 0]], [[0, 0, 4, 16, 26, 16, 4, 0, 0]]),
    (
        1,
        [[95, 130, 194, 217], [207, 235, 15, 163], [33, 215, 217, 130], [248, 189, 16, 69]],
        [[163, 158, 148, 146], [166, 161, 147, 141], [168, 163, 143, 132], [168, 161, 138, 123]],
    ),
    # Narrower than the blur, so mirrored repeatedly.
    (4, [[0, 255, 0, 0, 9]], [[65, 68, 63, 66, 61]]),
    (4, [[0], [255], [0], [0], [9]], [[65], [68], [63], [66], [61]]),
    (
        1,
        [[0, 17, 34, 51], [68, 85, 102, 119], [136, 153, 170, 187], [204, 221, 238, 255]],
        [[61, 68, 81, 88], [88, 95, 108, 115], [140, 147, 160, 167], [167, 174, 187, 194]],
    ),
    (
        64,
        [[0, 17, 34, 51], [68, 85, 102, 119], [136, 153, 170, 187], [204, 221, 238, 255]],
        [[126, 126, 127, 127], [126, 126, 127, 127], [128, 128, 129, 129], [128, 128, 129, 129]],
    ),
]


@pytest.mark.parametrize(("radius", "mask", "expected"), OPENCV)
def test_the_blur_equals_opencvs(
    radius: int, mask: list[list[int]], expected: list[list[int]]
) -> None:
    assert rows_of(blur_mask(grey(mask), radius)) == expected


def test_radius_0_leaves_the_mask_unchanged() -> None:
    assert rows_of(blur_mask(grey([[0, 255, 3]]), 0)) == [[0, 255, 3]]


@given(radius=st.integers(0, 64), width=st.integers(1, 40), height=st.integers(1, 40))
def test_a_blurred_white_mask_is_white(radius: int, width: int, height: int) -> None:
    white = Image.new("L", (width, height), 255)
    assert blur_mask(white, radius).tobytes() == white.tobytes()


@given(radius=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_blur_reaches_two_and_a_half_radii_and_no_further(radius: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).integers(0, 80, 2)
    mask = np.zeros((80, 80), dtype=np.uint8)
    mask[y, x] = 255
    changed = np.argwhere(np.asarray(blur_mask(Image.fromarray(mask), radius)))
    if len(changed):
        assert np.abs(changed - (y, x)).max() <= int(2.5 * radius + 0.5)


def test_a_latent_is_masked_by_the_mean_of_its_pixels() -> None:
    mask = np.zeros((24, 40), dtype=np.uint8)
    mask[8:24, 8:24] = 255
    expected = torch.zeros(1, 1, 3, 5)
    expected[..., 1:3, 1:3] = 1
    result = to_latent_mask(Image.fromarray(mask))
    assert torch.equal(result, expected)
    assert result.dtype == torch.float32


def test_the_mean_is_bicubic_with_undershoot_beside_an_edge() -> None:
    """A square from 12 to 52 covers half of the latents at its edge, all masked but the corners."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (12, 12, 52, 52))
    rows = ["00000000", "00000000", "01111110", "00111100"]
    expected = [[int(masked) for masked in row] for row in [*rows, *reversed(rows)]]
    assert to_latent_mask(mask)[0, 0].tolist() == expected


@pytest.mark.parametrize(("value", "masked"), [(0, 0), (127, 0), (128, 1), (255, 1)])
def test_grey_is_rounded_in_latents(value: int, masked: int) -> None:
    assert to_latent_mask(Image.new("L", (16, 8), value)).tolist() == [[[[masked, masked]]]]
