"""Filling the masked area, in pixels and in latents."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from imagefleet_shared.field_types import MaskFill
from imagefleet_worker.inpaint.fill import erase_masked, fill_latents, fill_masked

RED, BLUE = (200, 10, 20), (20, 10, 200)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def block(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def test_unmasked_pixels_are_unchanged() -> None:
    picture, mask = noise(70, 50), block(70, 50, (20, 10, 45, 50))
    result = np.asarray(fill_masked(picture, mask))
    unmasked = np.asarray(mask) == 0
    np.testing.assert_array_equal(result[unmasked], np.asarray(picture)[unmasked])


def test_a_hole_in_one_colour_is_filled_with_it() -> None:
    picture = Image.new("RGB", (96, 64), RED)
    picture.paste((0, 255, 0), (40, 20, 60, 40))
    result = np.asarray(fill_masked(picture, block(96, 64, (40, 20, 60, 40)))).astype(int)
    # In 8 bits, a colour premultiplied with a small alpha is not restored exactly.
    assert np.abs(result - RED).max() <= 8


def test_a_hole_between_two_colours_is_filled_with_the_nearer_one() -> None:
    picture = Image.new("RGB", (96, 64), RED)
    picture.paste(BLUE, (48, 0, 96, 64))
    result = np.asarray(fill_masked(picture, block(96, 64, (32, 0, 64, 64)))).astype(int)
    assert np.abs(result[:, 32] - RED).max() <= 8
    assert np.abs(result[:, 63] - BLUE).max() <= 8
    assert result[32, 40, 0] > result[32, 56, 0]


def test_blurs_of_a1111s_radii_are_composited() -> None:
    """The same in floating point: each blur as often as in A1111, the widest first."""
    picture, mask = noise(80, 60), block(80, 60, (10, 5, 75, 58))
    unmasked = erase_masked(picture, mask)
    filled = np.zeros((60, 80, 4))  # premultiplied
    for radius in (256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0):
        blur = np.asarray(unmasked.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")) / 255
        over = np.dstack([blur[..., :3] * blur[..., 3:], blur[..., 3:]])
        filled = over + filled * (1 - over[..., 3:])
    expected = 255 * filled[..., :3] / filled[..., 3:]
    assert np.abs(np.asarray(fill_masked(picture, mask)) - expected).max() < 3


def test_if_everything_is_masked_the_fill_is_black() -> None:
    black = fill_masked(noise(32, 32), Image.new("L", (32, 32), 255))
    assert black.getcolors() == [(32 * 32, (0, 0, 0))]


def test_the_input_picture_is_not_modified() -> None:
    picture = noise(32, 32)
    before = picture.tobytes()
    fill_masked(picture, block(32, 32, (4, 4, 9, 9)))
    assert (picture.mode, picture.tobytes()) == ("RGB", before)


@given(colour=st.tuples(*[st.integers(0, 255)] * 3), masked=st.integers(0, 255))
def test_masked_pixels_become_transparent(colour: tuple[int, int, int], masked: int) -> None:
    layer = erase_masked(Image.new("RGB", (1, 1), colour), Image.new("L", (1, 1), masked))
    opaque = 255 - masked
    expected = [(value * opaque + 127) // 255 for value in colour]
    assert np.asarray(layer).ravel().tolist() == [*expected, opaque]


@pytest.mark.parametrize(
    ("fill", "filled"),
    [("original", 3.0), ("fill", 3.0), ("latent_noise", 7.0), ("latent_nothing", 0.0)],
)
def test_latent_modes_change_masked_latents_only(fill: MaskFill, filled: float) -> None:
    mask = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    latents, noise = torch.full((2, 4, 1, 2), 3.0), torch.full((2, 4, 1, 2), 7.0)
    result = fill_latents(latents, mask, noise, fill)
    expected = torch.tensor([[[[3.0, filled]]], [[[filled, 3.0]]]]).expand(2, 4, 1, 2)
    assert torch.equal(result, expected)
    assert torch.equal(latents, torch.full((2, 4, 1, 2), 3.0))
