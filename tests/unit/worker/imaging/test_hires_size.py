"""Sizes of the hires pass, computed by hand from A1111's rules."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.request_parts import HiresPass
from imagefleet_worker.imaging.hires_size import HiresSize, hires_size

eights = st.integers(8, 128).map(lambda eighths: 8 * eighths)


@pytest.mark.parametrize(
    ("first", "hires", "expected"),
    [
        ((512, 768), HiresPass(scale=2), HiresSize(1024, 1536)),
        ((512, 512), HiresPass(scale=1.7), HiresSize(864, 864)),  # 870.4
        ((512, 768), HiresPass(width=1024), HiresSize(1024, 1536)),
        ((768, 512), HiresPass(width=1000), HiresSize(1000, 664)),  # 666
        ((768, 512), HiresPass(height=1000), HiresSize(1496, 1000)),  # 1500
        ((88, 64), HiresPass(width=1000), HiresSize(1000, 720)),  # 727.3
        ((64, 88), HiresPass(height=1000), HiresSize(720, 1000)),
        ((512, 512), HiresPass(width=1024, height=1024), HiresSize(1024, 1024)),
        ((512, 512), HiresPass(width=1024, height=768), HiresSize(1024, 1024, 0, 32)),
        ((512, 512), HiresPass(width=768, height=1024), HiresSize(1024, 1024, 32, 0)),
        # 1500 x 1000 covers it; of 187 columns of latents 163 remain.
        ((768, 512), HiresPass(width=1304, height=1000), HiresSize(1496, 1000, 24, 0)),
        ((512, 704), HiresPass(width=1024, height=1384), HiresSize(1024, 1408, 0, 3)),
    ],
)
def test_the_size_equals_a1111s(
    first: tuple[int, int], hires: HiresPass, expected: HiresSize
) -> None:
    assert hires_size(*first, hires) == expected


@given(width=eights, height=eights, target_width=eights, target_height=eights)
def test_with_both_sides_the_size_is_exact_and_at_most_one_axis_is_cropped(
    width: int, height: int, target_width: int, target_height: int
) -> None:
    size = hires_size(width, height, HiresPass(width=target_width, height=target_height))
    assert (size.width, size.height) == (target_width, target_height)
    assert 0 in (size.cut_columns, size.cut_rows)
    assert min(size.cut_columns, size.cut_rows) >= 0


@given(width=eights, height=eights, scale=st.floats(1, 8, exclude_min=True))
def test_scaled_sizes_are_rounded_down_to_multiples_of_8(
    width: int, height: int, scale: float
) -> None:
    size = hires_size(width, height, HiresPass(scale=scale))
    for side, first in ((size.width, width), (size.height, height)):
        assert side % 8 == 0
        assert first * scale - 8 < side <= first * scale


def test_a_side_too_small_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="1024x32"):
        hires_size(2048, 64, HiresPass(width=1024))


def test_latents_and_pictures_are_cropped_alike_an_odd_line_at_the_end() -> None:
    size = HiresSize(48, 64, cut_columns=3, cut_rows=3)
    latents = torch.arange(8 * 6).reshape(1, 1, 8, 6)
    assert torch.equal(size.crop_latents(latents), latents[:, :, 1:6, 1:4])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    cropped = np.asarray(size.crop_image(Image.fromarray(pixels)))
    np.testing.assert_array_equal(cropped, pixels[8:48, 8:32])
    assert (size.width, size.height) == (24, 40)


def test_without_excess_nothing_is_cropped() -> None:
    latents = torch.zeros(2, 4, 8, 5)
    assert HiresSize(40, 64).crop_latents(latents).shape == latents.shape
