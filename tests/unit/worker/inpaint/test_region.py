"""The region of only_masked, by hand-computed cases and by properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagefleet_worker.inpaint.region import Box, masked_region


def mask_of(size: tuple[int, int], *boxes: Box) -> Image.Image:
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


@pytest.mark.parametrize(
    ("box", "size", "padding", "expected"),
    [
        # A1111's own example: 128 x 32 becomes 128 x 128.
        ((200, 300, 328, 332), (512, 512), 0, (200, 252, 328, 380)),
        ((200, 300, 232, 428), (512, 512), 0, (152, 300, 280, 428)),
        # The odd pixel goes below, or to the right.
        ((200, 300, 233, 332), (512, 512), 0, (200, 300, 233, 333)),
        # Shifted inward at each border.
        ((0, 0, 128, 32), (512, 512), 0, (0, 0, 128, 128)),
        ((384, 480, 512, 512), (512, 512), 0, (384, 384, 512, 512)),
        ((0, 200, 32, 328), (512, 512), 0, (0, 200, 128, 328)),
        ((480, 200, 512, 328), (512, 512), 0, (384, 200, 512, 328)),
        # Padding is added before the aspect ratio is reached.
        ((200, 300, 264, 332), (512, 512), 8, (192, 276, 272, 356)),
        ((2, 300, 66, 332), (512, 512), 8, (0, 279, 74, 353)),
        # Half as high as wide.
        ((200, 300, 264, 332), (512, 256), 0, (200, 300, 264, 332)),
        ((200, 300, 232, 332), (512, 256), 0, (184, 300, 248, 332)),
        # The aspect ratio cannot be reached: the whole axis, and no more.
        ((0, 300, 512, 332), (512, 2048), 0, (0, 0, 512, 512)),
    ],
)
def test_the_region_has_the_jobs_aspect_ratio_and_stays_inside(
    box: Box, size: tuple[int, int], padding: int, expected: Box
) -> None:
    assert masked_region(mask_of((512, 512), box), *size, padding) == expected


def test_the_region_includes_all_masked_pixels_however_faint() -> None:
    mask = mask_of((512, 512), (100, 100, 110, 110), (300, 290, 310, 310))
    mask.putpixel((320, 120), 1)
    assert masked_region(mask, 64, 64, 0) == (100, 95, 321, 316)


def test_a_black_mask_has_no_region() -> None:
    assert masked_region(Image.new("L", (64, 64)), 512, 512, 32) is None


def test_one_pixel_in_a_corner_is_a_region() -> None:
    mask = Image.new("L", (65, 33))
    mask.putpixel((64, 32), 255)
    assert masked_region(mask, 64, 64, 0) == (64, 32, 65, 33)
    assert masked_region(mask, 64, 64, 256) == (0, 0, 65, 33)


@given(
    picture=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    size=st.tuples(st.integers(8, 128), st.integers(8, 128)),
    padding=st.integers(0, 64),
    corners=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
)
def test_the_region_is_inside_the_picture_around_the_mask_and_has_the_aspect_ratio(
    picture: tuple[int, int],
    size: tuple[int, int],
    padding: int,
    corners: tuple[float, float, float, float],
) -> None:
    xs = sorted(int(c * picture[0]) for c in corners[:2])
    ys = sorted(int(c * picture[1]) for c in corners[2:])
    mask = mask_of(picture, (xs[0], ys[0], xs[1] + 1, ys[1] + 1))
    region = masked_region(mask, *size, padding)
    assert region is not None
    left, top, right, bottom = region
    assert 0 <= left <= max(0, xs[0] - padding)
    assert 0 <= top <= max(0, ys[0] - padding)
    assert min(picture[0], xs[1] + 1 + padding) <= right <= picture[0]
    assert min(picture[1], ys[1] + 1 + padding) <= bottom <= picture[1]
    width, height = right - left, bottom - top
    # At most one pixel short of the aspect ratio, unless limited by the picture's size.
    assert width == picture[0] or width >= height * size[0] / size[1] - 1
    assert height == picture[1] or height >= width * size[1] / size[0] - 1


def test_a_region_is_a_crop_of_the_mask() -> None:
    mask = mask_of((100, 60), (10, 10, 30, 20))
    region = masked_region(mask, 64, 64, 3)
    assert region is not None
    assert np.asarray(mask.crop(region)).sum() == np.asarray(mask).sum()
