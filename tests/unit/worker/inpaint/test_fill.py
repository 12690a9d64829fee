"""What lies under the mask."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from imagefleet_shared.field_types import MaskFill
from imagefleet_worker.inpaint.fill import fill_latents, fill_masked, without_masked

RED, BLUE = (200, 10, 20), (20, 10, 200)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def block(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def test_what_is_not_masked_stays_to_the_byte() -> None:
    picture, mask = noise(70, 50), block(70, 50, (20, 10, 45, 50))
    result = np.asarray(fill_masked(picture, mask))
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(result[kept], np.asarray(picture)[kept])


def test_a_hole_in_one_colour_is_filled_with_it() -> None:
    picture = Image.new("RGB", (96, 64), RED)
    picture.paste((0, 255, 0), (40, 20, 60, 40))
    result = np.asarray(fill_masked(picture, block(96, 64, (40, 20, 60, 40)))).astype(int)
    # A colour premultiplied with little alpha in 8 bits does not come back exactly.
    assert np.abs(result - RED).max() <= 8


def test_a_hole_between_two_colours_takes_the_nearer_at_each_side() -> None:
    picture = Image.new("RGB", (96, 64), RED)
    picture.paste(BLUE, (48, 0, 96, 64))
    result = np.asarray(fill_masked(picture, block(96, 64, (32, 0, 64, 64)))).astype(int)
    assert np.abs(result[:, 32] - RED).max() <= 8
    assert np.abs(result[:, 63] - BLUE).max() <= 8
    assert result[32, 40, 0] > result[32, 56, 0]


def test_veils_of_a1111s_radii_lie_on_each_other() -> None:
    """The same in floating point: each veil as often as A1111 lays it on, the widest first."""
    picture, mask = noise(80, 60), block(80, 60, (10, 5, 75, 58))
    known = without_masked(picture, mask)
    under = np.zeros((60, 80, 4))  # premultiplied
    for radius in (256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0):
        veil = np.asarray(known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")) / 255
        over = np.dstack([veil[..., :3] * veil[..., 3:], veil[..., 3:]])
        under = over + under * (1 - over[..., 3:])
    expected = 255 * under[..., :3] / under[..., 3:]
    assert np.abs(np.asarray(fill_masked(picture, mask)) - expected).max() < 3


def test_where_all_is_masked_nothing_is_known() -> None:
    black = fill_masked(noise(32, 32), Image.new("L", (32, 32), 255))
    assert black.getcolors() == [(32 * 32, (0, 0, 0))]


def test_the_picture_given_is_not_changed() -> None:
    picture = noise(32, 32)
    before = picture.tobytes()
    fill_masked(picture, block(32, 32, (4, 4, 9, 9)))
    assert (picture.mode, picture.tobytes()) == ("RGB", before)


@given(colour=st.tuples(*[st.integers(0, 255)] * 3), masked=st.integers(0, 255))
def test_what_is_masked_becomes_transparent(colour: tuple[int, int, int], masked: int) -> None:
    layer = without_masked(Image.new("RGB", (1, 1), colour), Image.new("L", (1, 1), masked))
    opaque = 255 - masked
    expected = [(value * opaque + 127) // 255 for value in colour]
    assert np.asarray(layer).ravel().tolist() == [*expected, opaque]


@pytest.mark.parametrize(
    ("fill", "under"),
    [("original", 3.0), ("fill", 3.0), ("latent_noise", 7.0), ("latent_nothing", 0.0)],
)
def test_latent_modes_change_what_is_masked_only(fill: MaskFill, under: float) -> None:
    mask = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    latents, noise = torch.full((2, 4, 1, 2), 3.0), torch.full((2, 4, 1, 2), 7.0)
    result = fill_latents(latents, mask, noise, fill)
    expected = torch.tensor([[[[3.0, under]]], [[[under, 3.0]]]]).expand(2, 4, 1, 2)
    assert torch.equal(result, expected)
    assert torch.equal(latents, torch.full((2, 4, 1, 2), 3.0))
